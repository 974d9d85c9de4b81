"""``app replay``: past steps of a run, made again."""

import csv
import hashlib
import json
from pathlib import Path

import pytest

from tests.app.conftest import Reference
from tests.support import faults, runs, tiny
from tests.support.application import Application
from tests.support.side_by_side import SideBySide

pytestmark = pytest.mark.process
side_by_side = SideBySide()


def content(run: Path) -> dict[str, str]:
    """Every file of a run with its hash."""
    return {
        str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in run.rglob("*")
        if file.is_file()
    }


def logged_steps(run: Path) -> list[int]:
    return [int(row["step"]) for row in runs.curve(run) if "train/loss" in row]


@side_by_side
def test_every_launch_of_a_run_is_made_again_as_it_was(application: Application, tmp_path: Path) -> None:
    """Killed, gone back, with another batch size, accumulation and rate; from kept checkpoints and from none."""
    text = tiny.write_text(tmp_path / "text.txt")
    settings = {"checkpoint_every_n_steps": 4, "trainer__max_steps": 24, "trainer__log_every_n_steps": 1}
    config = tiny.write(tmp_path / "config.yaml", tiny.gpt(text, **settings))
    run = tmp_path / "run"
    words = ("fit", "--config", config, "--run_dir", run, "--resume", "auto")
    killed = application.run(*words, cwd=tmp_path, prelude=faults.kill_at("step", 10))
    assert killed.code == -9, killed
    changed = (
        "--data.init_args.batch_size",
        8,
        "--trainer.accumulate_grad_batches",
        2,
        "--model.dropout",
        0.0,
    )
    killed = application.go_on(run, *changed[:4], prelude=faults.kill_at("step", 15))
    assert killed.code == -9, killed
    ended = application.go_on(run, "--model.learning_rate", "1e-3")
    assert ended.code == 0, ended
    assert logged_steps(run) == list(range(1, 25))
    before = content(run)
    ended = application.run("replay", run, "--sample", 24, "--json", tmp_path / "steps.json", cwd=tmp_path)
    assert ended.code == 0, ended
    assert "24 of 24 steps were logged by the run: as recorded, bit for bit" in ended.out
    assert len(ended.out.splitlines()) < 40, ended
    assert content(run) == before
    steps = json.loads((tmp_path / "steps.json").read_text())["steps"]
    assert [each["figures"] for each in steps] == [each["recorded"] for each in steps]


@side_by_side
def test_weights_of_another_run_an_average_and_running_statistics(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    text = tiny.write_text(tmp_path / "text.txt")
    settings = {"checkpoint_every_n_steps": 5, "trainer__max_steps": 12, "trainer__log_every_n_steps": 1}
    content = tiny.tilelli(text, **settings, model__init_args__dropout=0.1)
    content["trainer"]["callbacks"] = [
        {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.9}}
    ]
    config = tiny.write(tmp_path / "config.yaml", content)
    first = application.fit(config, tmp_path / "first")
    run = application.fit(config, tmp_path / "second", "--init_from", first, "--keep_every_n_steps", 3)
    assert runs.saved_steps(run) == [3, 6, 9, 10, 12]
    for made in (first, run):
        ended = application.run("replay", made, "--step", 2, 7, 8, 12, cwd=tmp_path)
        assert ended.code == 0, ended
        assert "4 of 4 steps" in ended.out


@side_by_side
def test_what_differs_from_the_record_is_named(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    run = runs.copied(reference.baseline, tmp_path / "run")
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    column = rows[0].index("train/loss")
    changed = next(row for row in reversed(rows) if row[column])
    changed[column] = str(float(changed[column]) + 1e-6)
    with (run / "metrics.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    step = int(changed[0])
    ended = application.run("replay", run, "--step", 1, step, "--examine", cwd=tmp_path)
    assert ended.code == 4, ended
    assert f"1 differ, the first at step {step}" in ended.out
    assert f"loss {float(changed[column])!r} recorded" in " ".join(ended.out.split())
    assert "the step is finite when replayed" in ended.out


@side_by_side
def test_the_first_step_that_meets_a_condition(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    run = reference.baseline
    losses = {int(row["step"]): float(row["train/loss"]) for row in runs.curve(run) if "train/loss" in row}
    limit = (losses[1] + min(losses.values())) / 2
    ended = application.run("replay", run, "--until", f"train/loss < {limit}", cwd=tmp_path)
    assert ended.code == 0, ended
    step = int(ended.out.splitlines()[1].split()[0])
    assert 1 < step <= next(step for step, loss in losses.items() if loss < limit)
    ended = application.run("replay", run, "--until", "train/grad_norm > 1e9", "--start", 15, cwd=tmp_path)
    assert ended.code == 0
    assert "no step from 15 to 20 has train/grad_norm > 1e9" in ended.out


@side_by_side
def test_mistakes_have_one_line(application: Application, reference: Reference, tmp_path: Path) -> None:
    run = reference.baseline
    for words, said in (
        (("--step", 21), "--step 21: must lie in 1 to 20, the steps of the run"),
        (("--step", 0), "--step 0: must lie in 1 to 20"),
        (("--sample", 1000), "the number of logged steps"),
        (("--until", "loss > 3"), "one of the keys train/loss, train/aux_loss, train/grad_norm"),
        (("--until", "train/loss > much"), "must be KEY > NUMBER"),
        (("--until", "train/loss > 1", "--start", 30), "--start 30: must lie in 1 to 20"),
        ((), "one of the arguments --step --sample --until is required"),
    ):
        ended = application.run("replay", run, *words, cwd=tmp_path)
        assert ended.code == 2, ended
        assert said in ended.err
        assert len(ended.err.splitlines()) == 1
