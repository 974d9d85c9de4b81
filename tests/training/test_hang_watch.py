"""Who is behind, and what a person is told of it."""

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import TCPStore

from app.training import hang_watch
from app.training.hang_watch import HangWatch, StoreNotes, behind, told
from app.training.local_store import LocalNotes


def noted(step: int = 8, collectives: int = 20, **values: Any) -> dict[str, Any]:
    usual = {
        "host": "node1",
        "pid": 77,
        "phase": "training",
        "at": "step (module.py:1)",
        "beat": 1,
        "notes": 3,
    }
    return usual | {"step": step, "collectives": collectives} | values


@pytest.mark.parametrize(
    ("ranks", "silences", "expected"),
    [
        ([noted(), noted(step=7), noted()], {}, [1]),
        ([noted(), noted(collectives=19), noted()], {}, [1]),
        # What is stopped may be a step ahead of the others on the host.
        ([noted(step=7), noted(step=7), noted(step=8)], {2: 30.0}, [2]),
        ([noted(step=7), noted(), noted(step=7)], {}, [0, 2]),
        ([noted(), noted()], {}, []),
        ([noted(), noted()], {0: 30.0, 1: 30.0}, []),
    ],
)
def test_who_is_behind(ranks: list[dict[str, Any]], silences: dict[int, float], expected: list[int]) -> None:
    assert behind(dict(enumerate(ranks)), dict.fromkeys(range(len(ranks)), 0.0) | silences, 60.0) == expected


def test_what_a_person_is_told() -> None:
    text = told(
        {0: noted(), 1: noted(7, host="node2", pid=99, at="loop (mine.py:3)")}, {0: 0.0, 1: 12.0}, 903.0
    )
    assert text.splitlines()[:2] == [
        "no rank has made progress for 903 s; rank 1 is behind (host node2, process 99): training after step 7, "
        "20 collectives begun, in loop (mine.py:3), no sign of life for 12 s",
        "  rank 0 (host node1, process 77): training after step 8, 20 collectives begun, in step (module.py:1)",
    ]
    assert "--resume auto" in text
    assert "NCCL_SOCKET_IFNAME" in text
    alike = told({0: noted(), 1: noted()}, {}, 903.0)
    assert alike.startswith("no rank has made progress for 903 s; none is behind the others\n  rank 0 (host")


class Ends(HangWatch):
    """Keeps what it would end the process with."""

    ended = ""

    def _end(self, reason: str) -> None:
        self.ended = self.ended or reason
        self.close()


@pytest.fixture(params=["store", "memory"])
def ranks(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Watches of two ranks that note in one store, or in memory that they share."""
    monkeypatch.setattr(hang_watch, "NOTE_SECONDS", 0.02)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    file = tmp_path / "notes"
    file.write_bytes(bytes(2 * 4096))
    connect = {
        "store": partial(StoreNotes.connected, ("127.0.0.1", store.port)),
        "memory": partial(LocalNotes, str(file)),
    }[request.param]
    made = [Ends(connect, rank, 2, 0.5) for rank in range(2)]
    for watch in made:
        watch.start()
    yield made
    for watch in made:
        watch.close()
        watch.join(5)


def test_ranks_that_come_on_are_left_alone_and_then_the_last_one_is_named(ranks: Any) -> None:
    began = time.monotonic()
    step = 0
    while time.monotonic() - began < 1.2:
        step += 1
        ranks[0].note(step, "training")
        ranks[1].note(step - 1, "training")
        time.sleep(0.05)
    assert not ranks[0].ended
    ranks[0].join(3)
    assert "rank 1 is behind (host" in ranks[0].ended
    assert f"process {os.getpid()}" in ranks[0].ended


@pytest.mark.parametrize("phases", [(), ("training", "")])
def test_before_the_first_step_and_after_the_last_one_nothing_is_due(
    ranks: Any, phases: tuple[str, ...]
) -> None:
    for phase in phases:
        for watch in ranks:
            watch.note(1, phase)
    time.sleep(1.2)
    assert not ranks[0].ended
    assert not ranks[1].ended


def test_a_rank_that_was_never_heard_of_is_behind(ranks: Any) -> None:
    ranks[1].close()
    ranks[0].note(1, "training")
    ranks[0].join(5)
    assert "rank 1 is behind (host" in ranks[0].ended
    assert "starting after step 0" in ranks[0].ended
