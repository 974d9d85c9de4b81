"""A whole run: what it prints, what it leaves, what it says afterwards."""

import csv
import json
from pathlib import Path

import pytest

from tests.support import tiny
from tests.support.application import Application

pytestmark = pytest.mark.process


def test_a_run_leaves_what_it_promises(application: Application, tmp_path: Path, text: Path) -> None:
    config = tiny.write(tmp_path / "small.yaml", tiny.tilelli(text))
    ended = application.run("fit", "--config", config, cwd=tmp_path)
    assert ended.code == 0, ended
    (run,) = (tmp_path / "runs" / "small").iterdir()
    assert f"app validate {run.relative_to(tmp_path)}" in ended.out
    assert f"app generate {run.relative_to(tmp_path)}" in ended.out
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"], status["exit_code"]) == ("finished", 40, 0)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["val/loss"] > 0
    assert 0 < summary["baseline/count_loss"] < 3
    assert summary["baseline/count_order"] > 1
    assert "counts   counting what follows the last " in ended.out
    assert {"best-000040.ckpt", "resume-000030.ckpt", "resume-000040.ckpt"} <= {
        file.name for file in (run / "checkpoints").iterdir()
    }
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    # Watchers with an interval of their own have rows of their own.
    rows = [row for row in rows if row["train/loss"] or row["val/loss"]]
    steps = [(int(row["step"]), bool(row["val/loss"])) for row in rows]
    assert steps == [
        (1, False),
        *((s, v) for s in range(5, 41, 5) for v in (False, True) if not v or s % 20 == 0),
    ]
    assert not (run / "lock").exists()
