"""An architecture from outside the tree: trusted by name, trained, watched, resumed and asked for text."""

from pathlib import Path

import pytest

from tests.support import faults, runs, tiny
from tests.support.application import REPOSITORY, Application
from tests.support.side_by_side import SideBySide

pytestmark = pytest.mark.process
side_by_side = SideBySide()
TRUST = ("--trust_imports", "lane_mixer")


def configuration(tmp_path: Path) -> Path:
    (tmp_path / "lane_mixer.py").write_text((REPOSITORY / "tests" / "app" / "lane_mixer.py").read_text())
    model = {
        "class_path": "lane_mixer.LaneMixerModule",
        "init_args": {"learning_rate": 0.01, "warmup_steps": 5},
    }
    text = tiny.write_text(tmp_path / "text.txt")
    return tiny.write(tmp_path / "config.yaml", tiny.tilelli(text, model=model))


@side_by_side
def test_it_does_all_that_a_shipped_one_does(application: Application, tmp_path: Path) -> None:
    config = configuration(tmp_path)
    clean, run = tmp_path / "clean", tmp_path / "run"
    words = ("fit", "--config", config, "--run_dir", run, "--resume", "auto", *TRUST)
    killed = application.start(*words, cwd=tmp_path, prelude=faults.kill_at("step", 27))
    application.fit(config, clean, *TRUST)
    assert killed.wait().code == -9, killed.output()
    ended = application.run(*words, cwd=tmp_path)
    assert ended.code == 0, ended
    runs.assert_same_run(run, clean)
    # Every shipped watcher has found what it watches, by kind and axes alone.
    row = next(row for row in runs.curve(run) if row["step"] == "40" and "train/loss" in row)
    for key in (
        "train/aux_loss", "routes/running_share/slow", "routes/lane_share/slow/l01", "routes/lane_share/fast/max", "routes/lane_entropy",
        "balance/max_over_mean_load", "balance/dead_banks",
    ):  # fmt: skip
        assert key in row, sorted(row)
    assert {line["key"] for line in runs.details(run)} >= {"routes/lane_share", "balance/lane_load"}
    generated = application.run("generate", run, "--tokens", 12, *TRUST, cwd=tmp_path)
    assert generated.code == 0, generated
    assert len(generated.out) >= 12
    validated = application.run("validate", run, "--checkpoint", "last", *TRUST, cwd=tmp_path)
    assert validated.code == 0, validated
    assert "val/loss" in validated.out


@side_by_side
def test_it_must_be_trusted_each_time(application: Application, tmp_path: Path) -> None:
    config = configuration(tmp_path)
    run = application.fit(config, tmp_path / "run", *TRUST, "--trainer.max_steps", 2)
    code = tmp_path / "lane_mixer.py"
    code.write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n{code.read_text()}")
    for words in (
        ("fit", "--config", config),
        ("fit", "--run_dir", run, "--resume", "auto", "--trainer.max_steps", 4),
        ("validate", run),
        ("generate", run),
        ("generate", run, "--trust_imports", "lane"),
    ):
        ended = application.run(*words, cwd=tmp_path)
        assert ended.code == 2, ended
        assert "may not be imported" in ended.err
        assert "--trust_imports" in ended.err
    assert not (tmp_path / "imported").exists()
    assert application.run("generate", run, "--tokens", 1, *TRUST, cwd=tmp_path).code == 0
    assert (tmp_path / "imported").exists()
