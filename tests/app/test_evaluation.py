"""Figures outside of training: exact, complete, and still there after a kill."""

import json
import re
from pathlib import Path

import pytest

from tests.support import faults, runs, tiny
from tests.support.application import Application

pytestmark = pytest.mark.process


def test_validate_counts_every_token_also_where_the_run_looked_at_fewer(
    application: Application, tmp_path: Path, text: Path
) -> None:
    config = tiny.gpt(text, trainer__max_steps=4, trainer__limit_val_batches=2)
    run = application.fit(tiny.write(tmp_path / "a.yaml", config), tmp_path / "a")
    fingerprint = runs.launches(run)[0]["data"]
    ended = application.run("validate", run, cwd=tmp_path)
    assert ended.code == 0, ended
    counted = re.search(r"val/tokens +([\d,]+)", ended.out)
    assert counted is not None
    assert int(counted[1].replace(",", "")) == fingerprint["val_tokens"] - 1
    assert json.loads((run / "summary.json").read_text())["val/tokens"] < fingerprint["val_tokens"] - 1


def test_another_text_is_said(application: Application, tmp_path: Path, text: Path) -> None:
    run = application.fit(
        tiny.write(tmp_path / "a.yaml", tiny.gpt(text, trainer__max_steps=4)), tmp_path / "a"
    )
    text.write_text(text.read_text().replace("wizards", "drazisw"))
    assert "another text" in application.run("validate", run, cwd=tmp_path).out


@pytest.mark.parametrize("command", ["validate", "generate"])
def test_a_run_without_a_checkpoint_is_said(application: Application, tmp_path: Path, command: str) -> None:
    run = tmp_path / "empty"
    run.mkdir()
    (run / "config.yaml").write_text("seed: 1\n")
    ended = application.run(command, run, cwd=tmp_path)
    assert ended.code == 2
    assert "holds no checkpoint yet" in ended.err


def test_figures_survive_a_kill_after_the_last_step(
    application: Application, tmp_path: Path, text: Path
) -> None:
    config = tiny.write(tmp_path / "a.yaml", tiny.tilelli(text, trainer__max_steps=10))
    clean = application.fit(config, tmp_path / "clean")
    killed = tmp_path / "killed"
    ended = application.run(
        "fit", "--config", config, "--run_dir", killed, cwd=tmp_path,
        prelude=faults.at("summary", "os.kill(os.getpid(), signal.SIGKILL)"),
    )  # fmt: skip
    assert ended.code == -9, ended
    assert not (killed / "summary.json").exists()
    assert application.go_on(killed).code == 0
    ours, theirs = (json.loads((run / "summary.json").read_text()) for run in (killed, clean))
    kept = {key for key in theirs if not key.startswith("launch/")}
    assert {"train/loss", "val/loss", "val/bpb"} <= kept
    assert {key: ours.get(key) for key in kept} == {key: theirs[key] for key in kept}


def test_going_on_from_the_best_checkpoint_leaves_something_to_go_on_from(
    application: Application, tmp_path: Path, text: Path
) -> None:
    config = tiny.write(
        tmp_path / "a.yaml", tiny.gpt(text, trainer__max_steps=30, trainer__val_check_interval=15)
    )
    run = application.fit(config, tmp_path / "a")
    (best,) = runs.saved_steps(run, "best")
    file = run / "checkpoints" / f"best-{best:06d}.ckpt"
    ended = application.run(
        "fit", "--resume", file, "--trainer.max_steps", 60, cwd=tmp_path,
        prelude=faults.at("step", "os.kill(os.getpid(), signal.SIGKILL)", step=best + 1),
    )  # fmt: skip
    assert ended.code == -9, ended
    assert runs.saved_steps(run)[-1] == best
    assert application.go_on(run, "--trainer.max_steps", 60).code == 0
