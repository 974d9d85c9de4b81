"""Ranks that are started early: what they are told, who notices whose end."""

import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.run import rank_processes
from app.run.arguments import read
from app.run.configuration import ConfigFile
from app.run.devices import n_known_processes
from app.run.errors import RankLostError
from app.run.rank_processes import OtherRanks, ParentWatch, RankWatch, RankZero
from app.run.ranks import LAUNCHER
from app.run.signals import StopRequests
from tests.support.application import REPOSITORY, assert_gone

HEARS = """
import os, sys
from app.run.rank_processes import rank_zero
zero = rank_zero()
plan, files = zero.receive("plan")
assert not files and not zero.has_met
lengths, (file,) = zero.receive("text")
place, _ = zero.receive("meet")
text = os.read(file, lengths[0]).decode()
sys.exit(int((plan, text, place, os.environ["LOCAL_RANK"]) == ({"a": "ä" * 100_000}, "hello", {"b": 1}, "1")) + 10)
"""


@pytest.fixture(autouse=True)
def nobody_else_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch that finds a lost rank ends all that its process has started: here also what other tests use."""
    monkeypatch.setattr(rank_processes, "end_descendants", lambda: None)


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtherRanks]:
    made = OtherRanks()
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail("the watch would end this process"))
    yield made
    made.end([signal.SIGKILL])


def running(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """What is started in place of this process's own command line."""
    monkeypatch.setattr(rank_processes, "_command", lambda: [sys.executable, "-c", program])


def test_a_rank_hears_what_was_said_before_it_was_started_and_after(
    monkeypatch: pytest.MonkeyPatch, others: OtherRanks
) -> None:
    running(monkeypatch, HEARS)
    made: list[str] = []

    def text() -> tuple[Any, list[int]]:
        made.append("text")
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the other process reads it
        file.write(b"hello")
        file.seek(0)
        return file, [5]

    others.say("plan", lambda: (None, {"a": "ä" * 100_000}))
    others.say("text", text)
    assert not made  # nobody is there to be told
    others.start(1)
    others.cancel_watch()
    others.say("meet", lambda: (None, {"b": 1}))
    others.wait(20)
    assert others.lost == (1, 11)
    assert made == ["text"]


def test_ranks_are_ended_and_can_be_started_again(
    monkeypatch: pytest.MonkeyPatch, others: OtherRanks
) -> None:
    running(monkeypatch, "import time; time.sleep(60)")
    others.start(2)
    pids = [process.pid for process in others.processes]
    others.end([signal.SIGKILL])
    assert_gone(pids, 1)
    others.start(1)
    assert len(others.processes) == 1


def test_rank_zero_is_gone() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.sendall(b"\0\0")  # it was killed in the middle of a word
        ours.close()
        with pytest.raises(RankLostError, match="the launching process is gone"):
            RankZero(theirs).receive("plan")


def test_the_first_lost_rank_is_named() -> None:
    others = OtherRanks()
    codes: list[Any] = [SimpleNamespace(poll=lambda code=code: code) for code in (0, None, -9, 1)]
    others.processes = codes
    assert others.lost == (3, -9)
    others.processes = codes[:2]
    assert others.lost is None
    others.processes = []


@pytest.mark.parametrize("is_told", [False, True])
def test_the_launcher_alone_ends_a_run_that_was_told_to_stop(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], is_told: bool
) -> None:
    requests = StopRequests()
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    others = OtherRanks()
    ended: Any = SimpleNamespace(poll=lambda: 143)
    others.processes = [ended]
    told: list[str] = []
    others.on_lost = told.append
    watch = RankWatch(others)
    # not cancelled while it looks, nor while it waits for a better explanation
    looks = iter([False, False, True])
    monkeypatch.setattr(watch, "_cancelled", SimpleNamespace(wait=lambda seconds: next(looks)))
    if is_told:
        requests.note(signal.SIGTERM)
    try:
        watch.run()
    finally:
        requests.restore()
    assert left == ([] if is_told else [6])
    assert told == ([] if is_told else ["rank 1 was lost (code 143)"])
    assert ("rank 1 was lost" in capfd.readouterr().err) == (not is_told)


def test_a_launcher_that_ended_before_the_watch_is_missed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAUNCHER, "1234567")
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it looks first"))
    ParentWatch.of_this_rank().run()
    assert left == [6]


@pytest.mark.parametrize(
    ("in_files", "words", "expected"),
    [
        ([{}], [], 1),
        ([{"trainer": {"devices": 2}}], [], 2),
        ([{"trainer": {"devices": 2}}, {"trainer": {"devices": 1}}], [], 1),
        ([{"trainer": {"devices": 1}}, {"trainer": {"max_steps": 1}}], ["--trainer.devices", "2"], 2),
        ([{"trainer": {"devices": 2}}], ["--trainer.devices=1"], 1),
        ([{"trainer": None}], ["--trainer.devices", "[3, 1]"], 2),
        ([{}], ["--trainer.devices", "0,1"], 2),
        ([{}], ["--trainer.devices", "1,"], 1),
        # The framework counts, or says what is wrong.
        ([{}], ["--trainer.devices", "auto"], 1),
        ([{}], ["--trainer.devices", "-1"], 1),
        ([{}], ["--trainer.devices", "-2"], 1),
        ([{}], ["--trainer.devices", "two"], 1),
        ([{}], ["--trainer.devices", "100000"], 1),
    ],
)
def test_how_many_processes_are_known_before_the_framework(
    in_files: list[dict[str, Any]], words: list[str], expected: int
) -> None:
    files = [ConfigFile(Path("x.yaml"), data, {}) for data in in_files]
    assert n_known_processes(files, read(words)) == expected
