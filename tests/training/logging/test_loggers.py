import csv
import errno
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from torch.utils.data import DataLoader

from app.run.errors import StorageError
from app.training.logging import event_file
from app.training.logging.loggers import RunFilesLogger, TensorBoardRunLogger, figure_name
from tests.support import runs


def _rows(directory: Path) -> list[dict[str, str]]:
    """The rows of the table, without their empty cells."""
    with open(directory / "metrics.csv", newline="") as file:
        return [{key: cell for key, cell in row.items() if cell} for row in csv.DictReader(file)]


def _lines(directory: Path) -> list[tuple[int, str, Any]]:
    records = map(json.loads, (directory / "details.jsonl").read_text().splitlines())
    return [(record["step"], record["key"], record["values"]) for record in records]


def _write(directory: Path, steps: range, resume_step: int | None = None, width: int = 3) -> RunFilesLogger:
    """One training row and line per step and a validation row at every second."""
    logger = RunFilesLogger(directory, resume_step)
    for step in steps:
        logger.log_metrics({"train/loss": 1 / step, "routes/share": 0.5}, step)
        logger.log_details({"routes/share": [[step] * width]}, step)
        if step % 2 == 0:
            logger.log_metrics({"val/loss": 2 / step}, step)
    return logger


# -- metrics.csv and details.jsonl ----------------------------------------------------------------------


def test_one_row_per_step_and_stage(tmp_path: Path) -> None:
    logger = RunFilesLogger(tmp_path)
    logger.log_metrics({"train/loss": 2.5, "epoch": 0}, step=10)
    logger.log_metrics({"val/loss": 2.25, "val/bpb": 3.5}, step=10)
    logger.log_metrics({"speed/step_ms": 12}, step=10)
    logger.log_metrics({"train/loss": 2.0, "step": 20}, step=20)
    logger.log_metrics({"test/loss": 2.125}, step=20)
    assert (tmp_path / "metrics.csv").read_text() == (
        "step,train/loss,val/loss,val/bpb,speed/step_ms,test/loss\n"
        "10,2.5,,,12,\n"
        "10,,2.25,3.5,,\n"
        "20,2.0,,,,\n"
        "20,,,,,2.125\n"
    )


def test_numbers_read_back_exactly(tmp_path: Path) -> None:
    numbers = [0.1 + 0.2, 1e-300, -0.0, math.pi * 1e17, math.inf, -math.inf, 2**60 + 1, True]
    numbers += [np.float32(0.1), np.int64(2**60 + 1), torch.tensor(0.1)]
    logger = RunFilesLogger(tmp_path)
    logger.log_metrics({f"train/{index}": number for index, number in enumerate(numbers)}, step=1)
    logger.log_metrics({"train/nan": math.nan}, step=1)
    (row,) = _rows(tmp_path)
    for index, number in enumerate(numbers):
        read = (
            type(number)(row[f"train/{index}"]) if isinstance(number, int) else float(row[f"train/{index}"])
        )
        assert read == float(number) if not isinstance(number, int) else read == number
    assert math.isnan(float(row["train/nan"]))


def test_details_are_strict_json(tmp_path: Path) -> None:
    logger = RunFilesLogger(tmp_path)
    logger.log_details({"a/b": [[1.5, math.nan], [math.inf, 2]], "a/c": np.ones((1, 2))}, step=3)
    logger.log_details({"a/b": [0.5]}, step=3)
    assert _lines(tmp_path) == [(3, "a/b", [0.5]), (3, "a/c", [[1.0, 1.0]])]
    logger.log_details({"a/b": [math.nan, (1, -math.inf)]}, step=4)
    assert _lines(tmp_path)[-1] == (4, "a/b", [None, [1, None]])


def test_a_resumed_run_has_the_files_of_an_uninterrupted_one(tmp_path: Path) -> None:
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    _write(tmp_path / "whole", range(1, 9))
    _write(tmp_path / "parts", range(1, 7))
    logger = _write(tmp_path / "parts", range(5, 9), resume_step=4)
    for name in ("metrics.csv", "details.jsonl"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    # A validation that runs again after the resume joins the row that is there.
    logger = RunFilesLogger(tmp_path / "parts", resume_step=8)
    logger.log_metrics({"val/loss": 0.25}, 8)
    logger.log_details({"routes/share": [[8] * 3]}, 8)
    for name in ("metrics.csv", "details.jsonl"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_new_key_after_a_resume_widens_older_rows(tmp_path: Path) -> None:
    _write(tmp_path, range(1, 4))
    logger = RunFilesLogger(tmp_path, resume_step=2)
    logger.log_metrics({"balance/excess": 0.5, "train/loss": 0.25}, step=3)
    rows = _rows(tmp_path)
    assert [row["step"] for row in rows] == ["1", "2", "2", "3"]
    assert rows[-1] == {"step": "3", "train/loss": "0.25", "balance/excess": "0.5"}
    assert rows[0] == {"step": "1", "train/loss": "1.0", "routes/share": "0.5"}
    assert all(line.count(",") == 4 for line in (tmp_path / "metrics.csv").read_text().splitlines())


@pytest.mark.parametrize("resume_step", [None, 4])
def test_what_a_crash_tore_is_dropped_at_any_byte(tmp_path: Path, resume_step: int | None) -> None:
    _write(tmp_path, range(1, 5))
    for name, cut in [("metrics.csv", 12), ("details.jsonl", 40)]:
        whole = (tmp_path / name).read_bytes()
        for size in range(len(whole) - cut, len(whole) + 1):
            (tmp_path / name).write_bytes(whole[:size])
            logger = RunFilesLogger(tmp_path, resume_step)
            logger.log_metrics({"train/loss": 7.0}, 9)
            logger.log_details({"routes/share": [9]}, 9)
            kept = whole[:size][: whole[:size].rindex(b"\n") + 1]
            written = (tmp_path / name).read_bytes()
            assert written.startswith(kept)
            assert written[len(kept) :].count(b"\n") == 1
            _rows(tmp_path)
            _lines(tmp_path)
            for other in ("metrics.csv", "details.jsonl"):
                (tmp_path / other).unlink()
            _write(tmp_path, range(1, 5))


def test_damaged_lines_in_the_middle_are_dropped(tmp_path: Path) -> None:
    _write(tmp_path, range(1, 4))
    for name in ("metrics.csv", "details.jsonl"):
        lines = (tmp_path / name).read_bytes().split(b"\n")
        lines.insert(2, b"\0" * 30)
        lines.insert(3, b"2,\xff")
        (tmp_path / name).write_bytes(b"\n".join(lines))
    _write(tmp_path, range(4, 5), resume_step=3)
    assert [row["step"] for row in _rows(tmp_path)] == ["1", "2", "2", "3", "4", "4"]
    assert [step for step, *_ in _lines(tmp_path)] == [1, 2, 3, 4]


def test_a_foreign_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("loss;step\n1;2\n")
    with pytest.raises(ValueError, match=r"metrics\.csv does not begin"):
        RunFilesLogger(tmp_path).log_metrics({"train/loss": 1.0}, 1)
    assert (tmp_path / "metrics.csv").read_text() == "loss;step\n1;2\n"


def test_metrics_need_a_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="global_step"):
        RunFilesLogger(tmp_path).log_metrics({"train/loss": 1.0})


#: what a disk says, and what a person reads of it
REFUSALS = {
    errno.ENOSPC: r"No space left on device; [\d,]+ bytes needed, [\d,]+ bytes free; free some space",
    errno.EDQUOT: r"Disk quota exceeded; [\d,]+ bytes needed; free some of your quota",
    errno.EFBIG: r"File too large; [\d,]+ bytes needed; raise the limit",
    errno.EIO: "Input/output error; check the disk",
    errno.EROFS: "Read-only file system; make the directory writable",
}
#: every call of a logger that writes, with the file that it writes to
WRITES: dict[str, Callable[[Any, int], None]] = {
    "metrics.csv": lambda logger, step: logger.log_metrics({"train/loss": 1.0}, step),
    "details.jsonl": lambda logger, step: logger.log_details({"a/b": [step]}, step),
    "health.jsonl": lambda logger, step: logger.log_health({"a": {"b": step}}, step),
    "samples.jsonl": lambda logger, step: logger.log_text("samples/0", "text", step),
    "events.out.tfevents": lambda logger, step: logger.log_metrics({"train/loss": 1.0}, step),
}


def _logger(directory: Path, name: str) -> Any:
    return TensorBoardRunLogger(directory) if name.startswith("events") else RunFilesLogger(directory)


@pytest.mark.parametrize("code", REFUSALS, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", WRITES)
def test_what_the_disk_refuses_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    logger = _logger(tmp_path, name)
    WRITES[name](logger, 1)
    write, calls = os.pwrite, []

    def refuses(descriptor: int, data: Any, offset: int) -> int:
        calls.append(offset)
        if len(calls) == 1:
            return write(descriptor, data[:5], offset)  # the disk is full in the middle
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwrite", refuses)
    with pytest.raises(
        StorageError, match=rf"cannot write .*{re.escape(name)}.*: {REFUSALS[code]}"
    ) as refused:
        WRITES[name](logger, 2)
    assert str(refused.value).isprintable()
    logger.finalize("failed")  # does not hide what has ended the run
    monkeypatch.undo()
    _logger(tmp_path, name).log_metrics({"train/loss": 1.0}, 3)


@pytest.mark.parametrize("name", WRITES)
def test_a_disk_that_is_full_only_when_it_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    logger = _logger(tmp_path, name)
    WRITES[name](logger, 1)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for call in (logger.flush, logger.save, lambda: logger.finalize("success")):
        with pytest.raises(StorageError, match=rf"cannot write .*{re.escape(name)}.*: No space left"):
            call()
    logger.finalize("failed")


@pytest.mark.parametrize("name", WRITES)
def test_a_file_that_is_removed_meanwhile(tmp_path: Path, name: str) -> None:
    logger = _logger(tmp_path / "run", name)
    (tmp_path / "run").mkdir()
    WRITES[name](logger, 1)
    shutil.rmtree(tmp_path / "run")
    WRITES[name](logger, 2)
    for call in (logger.flush, logger.save, lambda: logger.finalize("success")):
        with pytest.raises(
            StorageError, match=rf"{re.escape(name)}.*: it was removed while it was written to"
        ):
            call()
    logger.finalize("failed")
    assert not (tmp_path / "run").exists()
    for later, write in WRITES.items():
        with pytest.raises(StorageError, match="No such file or directory"):
            write(_logger(tmp_path / "run", later), 3)
    with pytest.raises(StorageError, match=r"depth-a\.png: No such file or directory"):
        RunFilesLogger(tmp_path / "run").log_figure("depth/a", b"", 3)


@pytest.mark.stress
@pytest.mark.process
def test_a_killed_process_loses_no_complete_row(tmp_path: Path) -> None:
    program = (
        "import sys, itertools\n"
        "from app.training.logging.loggers import RunFilesLogger\n"
        "logger = RunFilesLogger(sys.argv[1])\n"
        "for step in itertools.count(1):\n"
        "    logger.log_metrics({'train/loss': 1 / step}, step)\n"
        "    logger.log_metrics({'routes/share': 0.5}, step)\n"
        "    print(step, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        last = 0
        while last < 200:
            last = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        last = int(([str(last), *process.stdout.read().split("\n")[:-1]])[-1])
    finally:
        process.kill()
        process.wait()
    RunFilesLogger(tmp_path, resume_step=last).log_metrics({"train/loss": 0.0}, last + 1)
    rows = _rows(tmp_path)
    assert [int(row["step"]) for row in rows] == list(range(1, last + 2))
    assert all(row["train/loss"] == repr(1 / int(row["step"])) and "routes/share" in row for row in rows[:-1])


# -- TensorBoard ----------------------------------------------------------------------------------------


def _events(directory: Path) -> EventAccumulator:
    return EventAccumulator(str(directory)).Reload()


def test_events_after_the_resume_point_vanish(tmp_path: Path) -> None:
    first = TensorBoardRunLogger(tmp_path)
    for step in range(1, 7):
        first.log_metrics({"train/loss": float(step), "epoch": 0}, step)
        first.flush()
    second = TensorBoardRunLogger(str(tmp_path), resume_step=4)
    for step in (5, 6, 7):
        second.log_metrics({"train/loss": 10.0 * step}, step)
    second.finalize("success")
    events = _events(tmp_path)
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        *((step, float(step)) for step in range(1, 5)),
        *((step, 10.0 * step) for step in range(5, 8)),
    ]
    assert events.Tags()["scalars"] == ["train/loss"]


def test_a_validation_that_is_made_again_is_shown_once(tmp_path: Path) -> None:
    def log(loggers: list[Any], step: int, **numbers: float) -> None:
        for logger in loggers:
            logger.log_metrics({f"train/{name}": number for name, number in numbers.items()}, step)
            logger.flush()

    def validate(loggers: list[Any], loss: float) -> None:
        for logger in loggers:
            logger.log_metrics({"val/loss": loss}, 4)
            logger.log_text("samples/0", str(loss), 4)
            logger.flush()

    first = [TensorBoardRunLogger(tmp_path), RunFilesLogger(tmp_path)]
    for step in (2, 4):
        log(first, step, loss=1 / step, norm=math.nan)
    validate(first, 0.5)
    log(first, 6, loss=9.0)
    # TensorBoard reads files in the order of their names, which begin with the second.
    next(tmp_path.glob("events*")).rename(tmp_path / "events.out.tfevents.1.first")
    second = [TensorBoardRunLogger(tmp_path, 4, owes_validation=True), RunFilesLogger(tmp_path, 4)]
    second[0].log_configuration({"seed": 1})  # type: ignore[attr-defined]
    validate(second, 0.25)
    log(second, 6, loss=0.125)
    events = runs.events(tmp_path)
    steps = {tag: [step for step, _ in shown] for tag, shown in events.items()}
    assert (steps["train/loss"], steps["train/norm"], steps["val/loss"]) == ([2, 4, 6], [2, 4], [4])
    ((_, loss),) = events["val/loss"]
    assert TensorProto.FromString(loss).float_val == [0.25]
    ((_, text),) = events["samples/0"]
    assert b"0.25" in text
    # Charts of what only the first launch has logged so far stay.
    ((_, layout),) = events["custom_scalars__config__"]
    assert b"train/norm" in layout


def test_texts_and_numbers_that_are_not_finite(tmp_path: Path) -> None:
    logger = TensorBoardRunLogger(tmp_path)
    logger.log_text("samples/0", "def f():\n    *x*\n", 3)
    logger.log_metrics({"train/loss": math.nan, "train/norm": math.inf, "speed/tokens_seen": 7}, 3)
    logger.finalize("success")
    events = _events(tmp_path)
    (text,) = events.Tensors("samples/0")
    assert text.tensor_proto.string_val[0].decode() == "    def f():\n        *x*\n    "
    assert math.isnan(events.Scalars("train/loss")[0].value)
    assert events.Scalars("train/norm")[0].value == math.inf
    assert events.Scalars("watched speed/tokens_seen")[0].value == 7


def test_events_are_written_at_once_and_by_nobody_else(tmp_path: Path) -> None:
    before = threading.enumerate()
    logger = TensorBoardRunLogger(tmp_path)
    logger.log_configuration({"seed": 1})
    for step in range(1, 100):
        logger.log_metrics({"train/loss": 1 / step}, step)
        if step == 50:
            # No flush: what a killed process would leave.
            assert [event.step for event in _events(tmp_path).Scalars("train/loss")] == [*range(1, 51)]
    assert threading.enumerate() == before
    assert len([*tmp_path.iterdir()]) == 1


def test_whole_events_stay_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = TensorBoardRunLogger(tmp_path)
    for step in (1, 2):
        logger.log_metrics({"train/loss": 1 / step}, step)
    write = os.pwrite
    n_calls = itertools.count()

    def full(descriptor: int, data: Any, offset: int) -> int:
        if next(n_calls):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:20], offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match=r"events\.out\.tfevents"):
        logger.log_metrics({"train/loss": 9.0}, 3)
    monkeypatch.undo()  # somebody has made room
    logger.log_metrics({"train/loss": 0.25}, 4)
    assert [event.step for event in _events(tmp_path).Scalars("train/loss")] == [1, 2, 4]


def test_a_disk_that_is_full_only_when_events_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = TensorBoardRunLogger(tmp_path)
    logger.log_metrics({"train/loss": 1.0}, 1)

    def full(descriptor: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(event_file.os, "close", full)
    with pytest.raises(StorageError, match=r"events\.out.*: Disk quota exceeded"):
        logger.finalize("success")


def test_callbacks_can_show_whatever_a_summary_writer_can(tmp_path: Path) -> None:
    logger = TensorBoardRunLogger(tmp_path)
    logger.log_metrics({"train/loss": 1.0}, 1)
    logger.finalize("success")
    logger.experiment.add_histogram("weights", np.arange(9.0), 2)
    logger.experiment.add_scalar("train/loss", 2.0, 2)
    logger.finalize("success")
    events = _events(tmp_path)
    assert events.Tags()["histograms"] == ["weights"]
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2], "the second file purges nothing"


class _Regression(LightningModule):
    def __init__(self, width: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(1, width)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = self.layer(batch).square().mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_both_in_a_real_trainer(tmp_path: Path) -> None:
    loggers = [TensorBoardRunLogger(tmp_path), RunFilesLogger(tmp_path)]
    trainer = Trainer(
        accelerator="cpu",
        max_steps=3,
        logger=loggers,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(_Regression(), DataLoader(torch.ones(3, 1)))
    events, *others = sorted(path.name for path in tmp_path.iterdir())
    assert events.startswith("events.out.tfevents")
    assert others == ["metrics.csv"]
    assert trainer.log_dir == str(tmp_path)
    assert _events(tmp_path).Tags()["scalars"] == ["train/loss"]
    rows = _rows(tmp_path)
    assert len(rows) == 3
    logged = [event.value for event in _events(tmp_path).Scalars("train/loss")]
    assert [np.float32(row["train/loss"]) for row in rows] == pytest.approx(logged)


@pytest.mark.stress
@pytest.mark.process
def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from app.training.logging.loggers import RunFilesLogger, TensorBoardRunLogger\n"
        "for logger in RunFilesLogger(sys.argv[1]), TensorBoardRunLogger(sys.argv[1]):\n"
        "    logger.log_metrics({'train/loss': 1.0}, 1)\n"
        "    logger.flush(), logger.save(), logger.log_dir, logger.finalize('success')\n"
        "RunFilesLogger(sys.argv[1]).log_details({'a/b': [1]}, 1)\n"
        "TensorBoardRunLogger(sys.argv[1]).log_text('a', 'b', 1)\n"
    )
    environment = os.environ | {"RANK": "1", "LOCAL_RANK": "1"}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, env=environment, timeout=120)
    assert not list(tmp_path.iterdir())


def test_every_figure_has_a_file_of_its_own(tmp_path: Path) -> None:
    assert figure_name("depth/pathway_share") == "depth-pathway_share.png"
    assert figure_name("gamma/families/1") == "gamma-families-1.png"
    tags = [
        "depth/θ",
        "depth/σ",
        "depth/a b",
        "depth/a$b",
        "depth/" + "x" * 300,
        "depth/" + "x" * 301,
        "\ud800",
        "/",
    ]
    logger = RunFilesLogger(tmp_path)
    for tag in tags:
        logger.log_figure(tag, tag.encode(errors="replace"), 1)
    assert len(list((tmp_path / "figures").iterdir())) == len(tags)
