"""What the training loop tells whoever watches over a stop."""

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.run import checkpoint
from app.run.signals import StopRequests
from app.run.watch import SAVE_SECONDS, STOP_SECONDS
from app.training.run_callbacks.retention import LatestCheckpoints, RunState, VerifiedCheckpointIO
from app.training.run_callbacks.stopping import StopOnSignal

ANY: Any = None


@pytest.fixture
def requests() -> Iterator[StopRequests]:
    requests = StopRequests()
    yield requests
    requests.restore()


@pytest.fixture
def trainer() -> Any:
    return SimpleNamespace(
        training=True, state=SimpleNamespace(fn="fit"), loggers=[], is_global_zero=True, world_size=1
    )


def seconds_left(requests: StopRequests) -> float:
    now = time.monotonic()
    return requests.patience.deadline(asked=now) - now


def test_every_batch_is_a_sign_of_life(
    requests: StopRequests, trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks: list[str] = []
    monkeypatch.setattr(requests, "tick", lambda: ticks.append("tick"))
    callback = StopOnSignal(requests, LatestCheckpoints(tmp_path, RunState({}), 10))
    callback.on_train_start(trainer, ANY)
    assert not requests.deferring  # the first step may be compiled for minutes
    for is_last_micro in (False, True):
        outputs = {"record": SimpleNamespace(is_last_micro=is_last_micro)}
        callback.on_train_batch_end(trainer, ANY, outputs, ANY, 0)
    callback.on_validation_batch_end(trainer, ANY, ANY, ANY, 0)
    assert len(ticks) == 3


def test_the_steps_are_no_measure_of_what_follows_them(
    requests: StopRequests, trainer: Any, tmp_path: Path
) -> None:
    callback = StopOnSignal(requests, LatestCheckpoints(tmp_path, RunState({}), 10))
    requests.tick()
    requests.patience._intervals.append(100.0)
    assert seconds_left(requests) > 299
    callback.on_train_end(trainer, ANY)
    assert seconds_left(requests) == pytest.approx(STOP_SECONDS, abs=1)


def test_what_is_being_written_is_waited_for(
    requests: StopRequests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[float] = []
    monkeypatch.setattr(checkpoint, "write", lambda *_: left.append(seconds_left(requests)))
    requests.tick()
    VerifiedCheckpointIO().save_checkpoint({}, tmp_path / "a.ckpt")
    assert left == [pytest.approx(SAVE_SECONDS, abs=1)]
    assert seconds_left(requests) == pytest.approx(STOP_SECONDS, abs=1)


@pytest.mark.parametrize("is_global_zero", [True, False])
def test_ranks_that_do_not_write_wait_for_the_one_that_does(
    requests: StopRequests, trainer: Any, tmp_path: Path, is_global_zero: bool
) -> None:
    # On rank zero the time is the disk's while it writes, not while it meets the others afterwards.
    left: list[float] = []
    trainer.is_global_zero = is_global_zero
    trainer.save_checkpoint = lambda path: left.append(seconds_left(requests))
    requests.tick()
    LatestCheckpoints(tmp_path, RunState({}), 10).save(trainer, 10, False)
    assert left == [pytest.approx(STOP_SECONDS if is_global_zero else SAVE_SECONDS, abs=1)]
