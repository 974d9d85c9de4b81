"""Runs that training has left, beside each other."""

import csv
import json
from pathlib import Path

import pytest

from tests.app.conftest import Reference
from tests.support import runs
from tests.support.application import Application

pytestmark = pytest.mark.process


def seconds(run: Path) -> list[tuple[int, float]]:
    with (run / "metrics.csv").open() as file:
        return [
            (int(row["step"]), float(row["speed/seconds"]))
            for row in csv.DictReader(file)
            if row["speed/seconds"]
        ]


def test_a_resumed_run_goes_on_counting_seconds(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    run = runs.copied(reference.broken, tmp_path / "run")
    before = dict(seconds(run))
    ended = application.run("fit", "--resume", run, cwd=tmp_path)
    assert ended.code == 0, ended
    after = seconds(run)
    assert [step for step, _ in after] == [1, *range(5, 41, 5)]
    assert dict(after)[30] == before[30]  # the checkpoint that it went on from
    assert after[-1][1] > before[30]
    values = [value for _, value in after]
    assert values == sorted(values)


def test_trained_runs_beside_each_other(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    ended = application.run(
        "compare", reference.clean, reference.broken, reference.baseline, "--output", "out", cwd=tmp_path
    )
    assert ended.code == 0, ended
    assert f"{reference.broken}: is killed" in ended.out
    assert (tmp_path / "out" / "figures" / "curves.png").stat().st_size > 10_000
    report = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [group["runs"][0]["step"] for group in report["groups"]] == [40, 35, 20]
    assert report["differences"]["trainer.max_steps"] == {"A": 40, "B": 40, "C": 20}
    assert report["groups"][0]["figures"]["speed/seconds"]["mean"] > 0
    assert report["loss_key"] == "val/loss"
