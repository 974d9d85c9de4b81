"""A whole run, recorded: whatever a crash of the machine loses of it, the run goes on from what it said to have saved."""

import csv
import pickle
from pathlib import Path
from typing import Any

import pytest

from app.run import checkpoint, status
from app.run.configuration import strict_load
from app.run.directory import RunDirectory
from tests.app.conftest import Reference
from tests.support import crashes, runs
from tests.support.application import Application
from tests.support.crashes import Survival, require
from tests.support.recorded_calls import Recorder

pytestmark = [pytest.mark.process, pytest.mark.stress]

RECORD = """
import pickle
from pathlib import Path
from app.run.launching import Plan
from app.training.run_callbacks.retention import LatestCheckpoints
from tests.support.recorded_calls import Recorder
recorder = Recorder(Path({disk!r}))
forget, close = LatestCheckpoints.forget, Plan.close
def mark(self, step):
    recorder.mark(saved=step)
    forget(self, step)
def end(self):
    close(self)
    recorder.__exit__()
    Path({events!r}).write_bytes(pickle.dumps(recorder.events))
LatestCheckpoints.forget, Plan.close = mark, end
recorder.__enter__()
"""


def rows(run: Path) -> list[tuple[int, str]]:
    """Step and loss of every row; what a crash has torn has none."""
    if not (run / "metrics.csv").exists():
        return []
    with (run / "metrics.csv").open(newline="", errors="replace") as file:
        found = [
            row for row in csv.DictReader(line.replace("\0", "") for line in file) if row.get("train/loss")
        ]
    return [(int(row["step"]), row["train/loss"]) for row in found if (row["step"] or "").isdigit()]


def test_a_run_survives_every_crash(
    application: Application, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, events = tmp_path / "disk", tmp_path / "events"
    disk.mkdir()
    ended = application.run(
        "fit", "--config", reference.baseline_config, "--run_dir", disk / "deep" / "run", cwd=tmp_path,
        prelude=RECORD.format(disk=str(disk), events=str(events)),
    )  # fmt: skip
    assert ended.code == 0, ended
    runs.assert_same_run(disk / "deep" / "run", reference.baseline)
    recorder = Recorder(disk)
    recorder.events = pickle.loads(events.read_bytes())
    wanted = rows(reference.baseline)

    def check(left: Path, marks: dict[str, Any]) -> None:
        run = RunDirectory(left / "deep" / "run")
        skipped: list[tuple[Path, str]] = []
        newest = checkpoint.newest_verified(run.checkpoints, skipped)
        require(not skipped, f"a torn one is in the way: {skipped}")
        require(newest is not None or "saved" not in marks, "no checkpoint is left")
        said = status.read_status(run.status)
        require(said is not None or not run.status.exists(), "the status is torn")
        if newest is None:
            return
        step = int(newest.stem.rpartition("-")[2])
        require(step >= marks.get("saved", 0), f"the checkpoint of step {marks.get('saved')} is gone")
        require(said is not None and run.tokenizer.exists(), "status or tokenizer is gone")
        require(run.config.exists() and strict_load(run.config.read_text()), "the configuration is gone")
        require(len(runs.launches(run.path)) == 1, "the manifest is gone")
        before = [row for row in wanted if row[0] <= step]
        require(rows(run.path)[: len(before)] == before, f"rows up to step {step} are gone")
        assert said is not None
        if said["state"] == "finished":
            require(status.finished(run, said["step"]), "it says that it is finished and is not")

    monkeypatch.setattr(crashes, "MAX_STATES", 40)
    assert [event.value for event in recorder.events if event.target == "saved"] == [5, 10, 15, 20, 20]
    assert Survival(recorder, check).is_certain()
    everything = recorder.events
    for ending in ("metrics.csv", "checkpoints", ".tmp", "deep", "run"):
        recorder.events = [
            event for event in everything if event.kind != "sync" or not event.path.endswith(ending)
        ]
        assert len(recorder.events) < len(everything)
        assert next(Survival(recorder, check).losses(), None), (
            f"nothing is lost without the syncs of {ending}"
        )
