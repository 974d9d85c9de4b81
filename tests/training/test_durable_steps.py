"""What the loggers hold of the steps up to a checkpoint is there after any crash that leaves the checkpoint."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.run import checkpoint
from app.run.atomic import make_directory
from app.training.logging.loggers import RunFilesLogger, TensorBoardRunLogger
from app.training.run_callbacks.retention import LatestCheckpoints, RunState, VerifiedCheckpointIO
from tests.support.crashes import Survival, require
from tests.support.recorded_calls import Recorder


class Trainer:
    """What a keeper uses of the framework's."""

    is_global_zero = True

    def __init__(self, logger: Any, run: Path):
        self.loggers = [logger]
        self.run = run
        self.events: dict[int, dict[str, bytes]] = {}

    def save_checkpoint(self, path: Path) -> None:
        step = int(path.stem.rpartition("-")[2])
        self.events[step] = {file.name: file.read_bytes() for file in self.run.glob("events.*")}
        VerifiedCheckpointIO().save_checkpoint({"step": step}, path)


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    (tmp_path / "disk").mkdir()
    return Recorder(tmp_path / "disk")


def train(recorder: Recorder, logger: Any, steps: range, trainer: Trainer | None = None) -> Trainer:
    """Logs some steps and saves after the last one."""
    trainer = trainer or Trainer(logger, recorder.root)
    trainer.loggers = [logger]
    for step in steps:
        logger.log_metrics({"train/loss": 1 / step}, step)
        if hasattr(logger, "log_details"):
            logger.log_details({"share": [step]}, step)
            logger.log_text("samples/0", f"text {step}", step)
    keeper = LatestCheckpoints(recorder.root / "checkpoints", RunState({}), every_n_steps=1)
    keeper.save(trainer, steps[-1], True)  # type: ignore[arg-type]
    recorder.mark(saved=steps[-1])
    return trainer


def newest(disk: Path, marks: dict[str, Any]) -> int:
    """Step of the checkpoint that a run would go on from; 0 where there is none."""
    found = checkpoint.newest_verified(disk / "checkpoints")
    step = 0 if found is None else int(found.stem.rpartition("-")[2])
    require(step >= marks.get("saved", 0), "the checkpoint is gone")
    return step


def write_rows_and_lines(recorder: Recorder) -> Survival:
    """Also where the table is widened, and where a resumed run drops what lies after its checkpoint."""
    with recorder:
        make_directory(recorder.root / "checkpoints")
        logger = RunFilesLogger(recorder.root)
        train(recorder, logger, range(1, 3))
        logger.log_metrics({"val/loss": 2.0}, 2)
        logger.log_metrics({"train/loss": 1 / 3}, 3)
        train(recorder, RunFilesLogger(recorder.root, resume_step=2), range(3, 5))

    def check(disk: Path, marks: dict[str, Any]) -> None:
        saved = newest(disk, marks)
        if not saved:
            return
        resumed = RunFilesLogger(disk, resume_step=saved)
        resumed.log_metrics({"train/loss": 0.0}, 9)
        resumed.log_details({"share": [0]}, 9)
        resumed.log_text("samples/0", "", 9)
        with (disk / "metrics.csv").open(newline="") as file:
            rows = {int(row["step"]): row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]}
        wanted = [*range(1, saved + 1), 9]
        require(list(rows) == wanted, f"metrics.csv has rows of {list(rows)}, not of {wanted}")
        require(all(float(rows[step]) == 1 / step for step in wanted[:-1]), "a row is another one")
        for name in ("details.jsonl", "samples.jsonl"):
            steps = [json.loads(line)["step"] for line in (disk / name).read_text().splitlines()]
            require(steps == wanted, f"{name} has lines of {steps}, not of {wanted}")

    return Survival(recorder, check)


def write_events(recorder: Recorder) -> Survival:
    with recorder:
        make_directory(recorder.root / "checkpoints")
        logger = TensorBoardRunLogger(recorder.root)
        trainer = train(recorder, logger, range(1, 3))
        train(recorder, logger, range(3, 5), trainer)
        logger.finalize("success")

    def check(disk: Path, marks: dict[str, Any]) -> None:
        for name, content in trainer.events.get(newest(disk, marks), {}).items():
            assert len(content) > 100
            found = (disk / name).read_bytes() if (disk / name).exists() else b""
            require(
                found.startswith(content), f"{len(content)} bytes of events were there before the checkpoint"
            )

    return Survival(recorder, check)


@pytest.mark.parametrize("log", [write_rows_and_lines, write_events])
def test_what_was_logged_before_a_checkpoint_outlives_every_crash(
    recorder: Recorder, log: Callable[[Recorder], Survival]
) -> None:
    assert log(recorder).is_certain()


@pytest.mark.parametrize(
    ("log", "forgotten", "lost"),
    [
        (write_rows_and_lines, "app.training.logging.step_files.StepFile.sync", "metrics.csv has rows of"),
        (
            write_rows_and_lines,
            "app.training.logging.step_files.sync_directory",
            "samples.jsonl has lines of",
        ),
        (write_rows_and_lines, "app.run.atomic.sync_file", "metrics.csv has rows of"),
        (write_rows_and_lines, "app.training.logging.loggers.RunFilesLogger.save", "metrics.csv has rows of"),
        (write_events, "app.training.logging.event_file.EventFile.flush", "bytes of events"),
        (write_events, "app.training.logging.event_file.sync_directory", "bytes of events"),
    ],
)
def test_each_forgotten_sync_is_found(
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    log: Callable[[Recorder], Survival],
    forgotten: str,
    lost: str,
) -> None:
    monkeypatch.setattr(forgotten, lambda *_: None)
    survival = log(recorder)
    monkeypatch.undo()
    assert any(lost in loss for loss in survival.losses())
