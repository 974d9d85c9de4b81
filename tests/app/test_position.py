"""Where a run stands: in windows, kept in the checkpoint, whatever a resumed launch changes."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from app.run import checkpoint
from datamodules import CharDataModule
from tests.app.conftest import Reference
from tests.support import faults, runs, tiny
from tests.support.application import Application
from tests.support.side_by_side import SideBySide

pytestmark = pytest.mark.process
side_by_side = SideBySide()

BLOCK_SIZE = 16
#: what a launch changes, from which step it goes on, and up to which step it is what the last weights have seen
LAUNCHES: tuple[tuple[dict[str, Any], int], ...] = (
    ({"batch_size": 8}, 5),
    ({"batch_size": 4, "accumulate": 2}, 8),  # fewer windows, in two parts: 5 is no multiple of 2
    ({"batch_size": 9, "accumulate": 3}, 12),  # more, in three
    ({"batch_size": 6, "num_workers": 2}, 15),
)


def options(launch: dict[str, Any], max_steps: int) -> list[Any]:
    return [
        "--data.init_args.batch_size", launch["batch_size"],
        "--data.init_args.num_workers", launch.get("num_workers", 0),
        "--trainer.accumulate_grad_batches", launch.get("accumulate", 1),
        "--trainer.max_steps", max_steps,
    ]  # fmt: skip


def keeping_windows(file: Path) -> str:
    """Notes process, step and inputs of every micro-batch."""
    line = "repr((os.getpid(), self.trainer.global_step, args[0][0].tolist())) + '\\n'"
    return faults.at("read", f"open({str(file)!r}, 'a').write({line})", calls=())


def windows_read(file: Path) -> dict[int, list[list[int]]]:
    """Inputs by step, in the history that the last weights have seen."""
    read: dict[int, list[list[int]]] = {}
    launch = None
    for line in file.read_text().splitlines():
        process, step, rows = ast.literal_eval(line)
        if process != launch:  # what an earlier launch has read for this step and later ones was given up
            launch, read = process, {known: of for known, of in read.items() if known < step}
        read.setdefault(step, []).extend(rows)
    return read


@side_by_side
def test_no_window_is_lost_or_read_twice_when_a_resumed_launch_changes_its_sizes(
    application: Application, tmp_path: Path
) -> None:
    text = tiny.write_text(tmp_path / "text.txt")
    settings = {
        "checkpoint_every_n_steps": 5,
        "trainer__val_check_interval": 100,
        "trainer__log_every_n_steps": 1,
    }
    config = tiny.write(tmp_path / "config.yaml", tiny.gpt(text, **settings))
    run, file = tmp_path / "run", tmp_path / "windows"
    words = ["fit", "--config", config, "--run_dir", run, "--resume", "auto"]
    # The first launch is killed two steps after its checkpoint; the others are ended by their length.
    killed = application.run(
        *words,
        *options(LAUNCHES[0][0], 40),
        cwd=tmp_path,
        prelude=keeping_windows(file) + faults.kill_at("step", 7),
    )
    assert killed.code == -9, killed
    for launch, last in LAUNCHES[1:]:
        ended = application.run(*words, *options(launch, last), cwd=tmp_path, prelude=keeping_windows(file))
        assert ended.code == 0, ended
        assert "changed  data.init_args.batch_size: " in ended.out
    read = windows_read(file)
    sizes = [8] * 5 + [4] * 3 + [9] * 4 + [6] * 3
    assert [len(read[step]) for step in range(15)] == sizes
    data = CharDataModule(
        path=str(text), block_size=BLOCK_SIZE, batch_size=sum(sizes), val_fraction=0.02, seed=7
    )
    expected, _ = next(iter(data.train_dataloader()))
    assert torch.equal(torch.tensor([row for step in range(15) for row in read[step]]), expected)

    totals = [sum(sizes[:step]) * BLOCK_SIZE for step in range(1, 16)]
    assert [float(row["tokens_seen"]) for row in runs.curve(run) if "train/loss" in row] == totals
    assert json.loads((run / "summary.json").read_text())["tokens_seen"] == totals[-1]
    assert runs.last_checkpoint(run)["archlab"]["windows_seen"] == sum(sizes)
    assert "data.init_args.batch_size: 8 -> 4" in runs.launches(run)[1]["changes"]
    assert "trainer.accumulate_grad_batches: 1 -> 2" in runs.launches(run)[1]["changes"]


@side_by_side
def test_the_checkpoint_and_not_an_edited_file_says_what_changed(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    run = runs.copied(reference.baseline, tmp_path / "run")
    config = run / "config.yaml"
    content = yaml.safe_load(config.read_text())
    content["model"]["init_args"]["learning_rate"] = 1e-4
    content["data"]["init_args"]["batch_size"] = 2
    content["trainer"]["max_steps"] = 22
    config.write_text(yaml.safe_dump(content))
    ended = application.run("fit", "--resume", run, cwd=tmp_path)
    assert ended.code == 0, ended
    changes = [
        "data.init_args.batch_size: 4 -> 2",
        "model.init_args.learning_rate: 0.003 -> 0.0001",
        "trainer.max_steps: 20 -> 22",
    ]
    assert re.findall(r"^changed  (.*)$", ended.out, re.MULTILINE) == changes
    assert runs.launches(run)[-1]["changes"] == changes
    assert runs.last_checkpoint(run)["archlab"]["windows_seen"] == 20 * 4 + 2 * 2


@pytest.mark.parametrize(
    ("words", "edit", "said"),
    [
        (["--seed", 5], {}, "seed: 5, but the run has 7"),
        ([], {"seed": 5}, "seed: 5, but the run has 7"),
        (["--model.init_args.n_layers", 3], {}, "model.init_args.n_layers: 3, but the run has 2"),
        (["--data.init_args.block_size", 8], {}, "data.init_args.block_size: 8, but the run has 16"),
    ],
)
def test_a_finished_run_is_no_other_run(
    application: Application,
    reference: Reference,
    tmp_path: Path,
    words: list[Any],
    edit: dict[str, Any],
    said: str,
) -> None:
    run = runs.copied(reference.baseline, tmp_path / "run")
    if edit:
        config = run / "config.yaml"
        config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | edit))
    before = runs.files(run)
    ended = application.run("fit", "--resume", run, *words, cwd=tmp_path)
    assert ended.code == 2, ended
    assert said in ended.err
    assert runs.files(run) == before


@side_by_side
def test_a_finished_run_has_nothing_left_to_do(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    run = runs.copied(reference.baseline, tmp_path / "run")
    before = runs.files(run)
    for words in (
        ["--config", reference.baseline_config, "--trainer.max_steps=20", "--seed", 7],
        ["--trainer.max_steps", 12],
        ["--model.init_args.learning_rate", 1e-5],
    ):
        ended = application.run("fit", "--run_dir", run, "--resume", "auto", *words, cwd=tmp_path)
        assert (ended.code, ended.out.splitlines()[-1]) == (0, f"{run} is finished; nothing to do"), ended
        assert runs.files(run) == before


@side_by_side
def test_a_checkpoint_of_the_first_format_goes_on(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    run = runs.copied(reference.baseline, tmp_path / "run")
    file = run / "checkpoints" / "resume-000020.ckpt"
    content = checkpoint.read(file)
    for name in ("format", "windows_seen", "configuration", "place"):
        del content["archlab"][name]
    checkpoint.write(content, file)
    ended = application.run(
        "fit", "--resume", run, "--data.init_args.batch_size", 2, "--trainer.max_steps", 21, cwd=tmp_path
    )
    assert ended.code == 0, ended
    assert runs.launches(run)[-1]["changes"] == [
        "data.init_args.batch_size: 4 -> 2",
        "trainer.max_steps: 20 -> 21",
    ]
    assert runs.last_checkpoint(run)["archlab"]["windows_seen"] == 82
