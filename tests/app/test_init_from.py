"""A run that took its first weights from another one and was killed before it had a checkpoint of its own."""

import shutil
from pathlib import Path

import pytest

from tests.app.conftest import Reference
from tests.support import faults, runs
from tests.support.application import Application
from tests.support.side_by_side import SideBySide

pytestmark = pytest.mark.process
side_by_side = SideBySide()


@side_by_side
def test_a_run_without_a_checkpoint_starts_again_from_the_same_weights(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    """Two kills before the first checkpoint, the second launch in another folder; bitwise as an undisturbed run."""
    other = runs.copied(reference.baseline, tmp_path / "other")
    config = reference.baseline_config
    words = ("--config", config, "--trainer.max_steps", 6, "--init_from", "other")
    clean = application.start("fit", *words, "--run_dir", tmp_path / "clean", cwd=tmp_path)
    run = tmp_path / "run"
    killed = application.run("fit", *words, "--run_dir", run, cwd=tmp_path, prelude=faults.kill_at("step", 3))
    assert killed.code == -9, killed
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    killed = application.run("fit", "--resume", run, cwd=elsewhere, prelude=faults.kill_at("step", 4))
    assert killed.code == -9, killed
    weights = other / "checkpoints" / "best-000020.ckpt"
    said = f"{run} holds no checkpoint yet; it starts again from step 0 with the weights of {weights}"
    assert said in killed.out
    assert runs.saved_steps(run) == []
    assert clean.wait().code == 0, clean.output()

    moved = Path(shutil.move(weights, tmp_path))
    refused = application.run("fit", "--resume", run, cwd=tmp_path)
    assert refused.code == 2, refused
    assert (
        f"{run}: holds no checkpoint yet and began with --init_from {weights}, which is gone" in refused.err
    )
    shutil.move(moved, weights)

    ended = application.run("fit", "--resume", run, cwd=tmp_path)
    assert ended.code == 0, ended
    runs.assert_same_run(run, tmp_path / "clean")
    assert [launch["init_from"] for launch in runs.launches(run)] == [str(weights)] * 3
