"""The seconds of training beside the curve."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from app.training.run_callbacks import curve as module
from app.training.run_callbacks.curve import TrainingCurve, seconds_trained


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_seconds_of_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    curve = TrainingCurve(seconds=7.0)
    network: Any = SimpleNamespace(device=torch.device("cpu"))
    trainer: Any = SimpleNamespace()
    curve.on_validation_start(trainer, network)  # before the first batch: nothing runs
    clock.now += 50  # start-up
    curve.on_train_batch_start(trainer, network)
    clock.now += 2
    curve.on_train_batch_start(trainer, network)
    clock.now += 1
    curve.on_validation_start(trainer, network)
    clock.now += 30  # validation, and what follows it
    assert curve._elapsed() == 10.0
    curve.on_train_batch_start(trainer, network)
    clock.now += 4
    assert curve._elapsed() == 14.0
    assert curve.state_dict() == {"last": {}}  # two equal runs have equal checkpoints


def test_seconds_of_earlier_launches(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.csv"
    assert seconds_trained(metrics, 10) == 0.0
    metrics.write_text("step,train/loss,val/loss,speed/seconds\n5,1,,2.5\n5,,1,\n10,1,,5.0\n20,1,,11.0\n2")
    assert seconds_trained(metrics, 0) == 0.0
    assert seconds_trained(metrics, 5) == 2.5
    assert seconds_trained(metrics, 10) == 5.0
    assert seconds_trained(metrics, 12) == 6.0  # a checkpoint between two logged steps
    assert seconds_trained(metrics, 20) == 11.0
    metrics.write_text("step,train/loss\n5,1\n")
    assert seconds_trained(metrics, 5) == 0.0
