"""What the framework's own callbacks read: ``callback_metrics``, the rate of the scheduler, and steps that line up."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateMonitor

from app.training import GPTModule
from app.training.logging.loggers import RunFilesLogger
from app.training.optim.schedules import StepSchedule
from app.training.run_callbacks.curve import TrainingCurve
from tests.support import runs
from tests.support.in_process import fit

SIZES: dict[str, Any] = dict(d_model=8, n_layers=1, n_heads=2, warmup_steps=4)


class Metrics(Callback):
    """The keys and numbers that callbacks see after each step and each validation."""

    def __init__(self) -> None:
        self.after_steps: list[dict[str, float]] = []
        self.after_validation: dict[str, torch.Tensor] = {}
        self.validated: dict[str, float] = {}

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        self.after_steps.append({key: float(value) for key, value in trainer.callback_metrics.items()})

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.after_validation = {k: v for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        self.validated = dict(pl_module.last_validation)


def test_objectives_reach_callbacks_and_our_files_have_them_once(tmp_path: Path) -> None:
    seen = Metrics()
    fit(
        tmp_path, lambda **sizes: GPTModule(**SIZES, **sizes), steps=7, callbacks=[TrainingCurve(), seen],
        logger=RunFilesLogger(tmp_path), log_every_n_steps=3, limit_val_batches=2, val_check_interval=7, num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
    )  # fmt: skip
    rows = runs.curve(tmp_path)
    logged = {int(row["step"]): float(row["train/loss"]) for row in rows if "train/loss" in row}
    assert list(logged) == [1, 3, 6, 7]
    # Steps that are not logged leave the last value standing, and cost nothing.
    expected = [None, logged[1], logged[1], logged[3], logged[3], logged[3], logged[6]]
    assert [metrics.get("train/loss") for metrics in seen.after_steps] == expected
    assert all(value.dtype == torch.float64 for value in seen.after_validation.values())
    of_all = {key: float(value) for key, value in seen.after_validation.items()}
    assert of_all == {key: value for key, value in seen.validated.items() if key != "val/tokens"}
    assert [row["step"] for row in rows if "val/loss" in row] == ["7"]
    assert len(rows) == 5


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_monitor_reads_the_rate_of_each_logged_step_in_the_same_row(
    tmp_path: Path, accumulation: int
) -> None:
    monitor = LearningRateMonitor(logging_interval="step")
    module = fit(
        tmp_path, lambda **sizes: GPTModule(**SIZES, **sizes), steps=7, callbacks=[monitor, TrainingCurve()],
        logger=RunFilesLogger(tmp_path), log_every_n_steps=3, accumulate_grad_batches=accumulation,
    )  # fmt: skip
    rows = runs.curve(tmp_path)
    assert [row["step"] for row in rows] == ["1", "3", "6", "7"]
    for row in rows:
        assert row["lr-AdamW/pg1"] == row["lr-AdamW/pg2"] == row["train/lr"]
        assert float(row["train/lr"]) == module.current_learning_rate(int(row["step"]) - 1)


class Own(GPTModule):
    """A module that logs as the framework's tutorials do."""

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        made = super().training_step(batch, batch_idx)
        self.log("own/batch_idx", float(batch_idx))
        return made


def test_what_a_module_of_ones_own_logs_stands_in_the_row_of_its_step(tmp_path: Path) -> None:
    fit(
        tmp_path, lambda **sizes: Own(**SIZES, **sizes), steps=7, callbacks=[TrainingCurve()],
        logger=RunFilesLogger(tmp_path), log_every_n_steps=3,
    )  # fmt: skip
    rows = runs.curve(tmp_path)
    assert [(row["step"], float(row["own/batch_idx"])) for row in rows] == [
        ("1", 0.0), ("3", 2.0), ("6", 5.0), ("7", 6.0)
    ]  # fmt: skip


def test_a_scheduler_placed_at_a_step_goes_on_as_one_that_came_there() -> None:
    def made() -> tuple[Any, StepSchedule]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=1.0)
        optimizer.param_groups[0]["rate"] = 0.5
        return optimizer, StepSchedule(optimizer, lambda step: 0.1 * (step + 1))

    walked, placed = made(), made()
    for _ in range(5):
        walked[0].step()
        walked[1].step()
    placed[1].place(5)
    for optimizer, schedule in (walked, placed):
        optimizer.step()
        schedule.step()
        assert optimizer.param_groups[0]["lr"] == 0.5 * (0.1 * 7)
        assert schedule.state_dict() == {"last_epoch": 6}
        assert schedule.get_last_lr() == [0.5 * (0.1 * 7)]
