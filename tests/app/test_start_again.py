"""A run whose launch came to no checkpoint: the same command line, corrected, begins it again."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.app.conftest import Reference
from tests.support import faults, runs, tiny
from tests.support.application import Application
from tests.support.side_by_side import SideBySide

pytestmark = pytest.mark.process
side_by_side = SideBySide()
BOOM = "raise RuntimeError('boom')"


def shown_by_tensorboard(run: Path) -> dict[str, Any]:
    """Every event, but of the table of hyper-parameters and of the order of keys only that they are there."""
    return {tag: [] if tag.startswith(runs.OF_A_LAUNCH) else found for tag, found in runs.events(run).items()}


def names_of_files(run: Path) -> set[str]:
    """Everything that a run has left but its events, whose names tell the time."""
    return {name for name in runs.files(run) if not name.startswith(("events.", "source"))}


@pytest.mark.stress
@side_by_side
def test_a_crash_at_the_first_step(application: Application, reference: Reference, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ("fit", "--config", reference.config, "--run_dir", run)
    # A launch with other settings leaves rows, events, samples, findings and figures of a step after the first.
    wrong = ("--model.init_args.d_model", 32, "--seed", 9, "--checkpoint_every_n_steps", 1000)
    wrong += ("--trainer.val_check_interval", 1000)
    ended = application.run(*words, *wrong, cwd=tmp_path, prelude=faults.at("step", BOOM, 26))
    assert ended.code == 1, ended
    assert "RuntimeError: boom" in ended.err
    assert runs.curve(run)
    assert runs.saved_steps(run) == []
    (run / "figures" / "depth-of_another_network.png").write_bytes(b"old")
    (run / "samples.jsonl").write_text('{"step": 0, "key": "samples/old", "text": "old"}\n')

    # A retry that is refused changes nothing.
    before = runs.files(run)
    refused = application.run(*words, "--model.init_args.n_layers", 0, cwd=tmp_path)
    assert refused.code == 2, refused
    assert runs.files(run) == before

    ended = application.run(*words, cwd=tmp_path)
    assert ended.code == 0, ended
    assert (
        f"note     {run} holds no checkpoint yet; it starts again from step 0\n"
        "note     the launch before this one failed: RuntimeError: boom\n"
    ) in ended.out
    assert "\nchanged  " not in ended.out
    runs.assert_same_run(run, reference.clean)
    assert not runs.differences(shown_by_tensorboard(run), shown_by_tensorboard(reference.clean))
    assert names_of_files(run) - {"config-2.yaml"} == names_of_files(reference.clean)
    assert len(list(run.glob("events.out.tfevents.*"))) == 1
    first, second = runs.launches(run)
    assert (first["seed"], first["replaces"]) == (9, None)
    assert (second["seed"], second["resumed_from"]) == (7, None)
    assert second["replaces"] == {"state": "failed", "step": 25, "reason": "RuntimeError: boom"}
    assert "d_model: 32" in (run / "config-1.yaml").read_text()
    assert (run / "config.yaml").read_text() == (run / "config-2.yaml").read_text()
    assert (run / "config.yaml").read_text() == (reference.clean / "config.yaml").read_text()
    status = {"state": "finished", "step": 40, "exit_code": 0, "reason": "", "unprinted": None}
    assert runs.status(run) == status


@pytest.mark.stress
@side_by_side
def test_resume_auto_takes_the_corrected_configuration(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    """What a correction leaves out is gone too; a batch job that always says ``--resume auto`` needs no other words."""
    run = tmp_path / "run"
    text = tiny.write_text(tmp_path / "text.txt")
    settings = {"checkpoint_every_n_steps": 5, "trainer__max_steps": 6}
    wrong = tiny.write(
        tmp_path / "wrong.yaml", tiny.gpt(text, **settings, model__init_args__gradient_clip=0.001)
    )
    right = tiny.write(tmp_path / "right.yaml", tiny.gpt(text, **settings))
    words = ("--run_dir", run, "--resume", "auto")
    ended = application.run(
        "fit", "--config", wrong, *words, cwd=tmp_path, prelude=faults.at("step", BOOM, 3)
    )
    assert ended.code == 1, ended
    ended = application.run("fit", "--config", right, *words, cwd=tmp_path)
    assert ended.code == 0, ended
    assert re.findall(r"^changed  (.*)$", ended.out, re.MULTILINE) == [
        "model.init_args.gradient_clip: 0.001 -> 1.0"
    ]
    runs.assert_same_run(run, application.fit(right, tmp_path / "clean"))


@side_by_side
def test_a_best_checkpoint_alone_is_gone_on_from(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = (
        "fit",
        "--config",
        reference.baseline_config,
        "--run_dir",
        run,
        "--checkpoint_every_n_steps",
        1000,
    )
    killed = application.run(*words, cwd=tmp_path, prelude=faults.kill_at("step", 14))
    assert killed.code == -9, killed
    assert (runs.saved_steps(run), runs.saved_steps(run, "best")) == ([], [10])
    refused = application.run(*words, cwd=tmp_path)
    assert refused.code == 2, refused
    assert "already holds a run; continue it with --resume" in refused.err
    ended = application.run("fit", "--resume", run, "--checkpoint_every_n_steps", 5, cwd=tmp_path)
    assert ended.code == 0, ended
    assert "resumed  after step 10\n" in ended.out
    runs.assert_same_run(run, reference.baseline)


@side_by_side
def test_other_files_and_a_live_launch_are_in_the_way(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ("fit", "--config", reference.baseline_config, "--run_dir", run)
    waits = faults.at("step", "__import__('time').sleep(60)", 3)
    live = application.start(*words, cwd=tmp_path, prelude=waits)
    live.wait_until(lambda: (run / "metrics.csv").exists() and len(runs.curve(run)) > 0, "log a step")
    refused = application.run(*words, cwd=tmp_path)
    assert refused.code == 2, refused
    assert f"is in use by process {live.pid}" in refused.err
    live.kill()
    live.wait()
    (run / "notes.txt").write_text("mine")
    refused = application.run(*words, cwd=tmp_path)
    assert refused.code == 2, refused
    assert f"--run_dir {run}: holds other files (notes.txt)" in refused.err
    assert (run / "notes.txt").read_text() == "mine"
