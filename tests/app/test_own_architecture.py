"""An architecture from outside the tree: trusted by name, trained, watched, resumed and asked for text."""

import json
from pathlib import Path

import pytest
import yaml

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
def test_a_run_that_was_sent_must_be_trusted(application: Application, tmp_path: Path) -> None:
    config = configuration(tmp_path)
    made = application.fit(config, tmp_path / "run", *TRUST, "--trainer.max_steps", 2)
    code = tmp_path / "lane_mixer.py"
    code.write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n{code.read_text()}")
    run = runs.copied(made, tmp_path / "sent")
    changed = json.loads((made / "run.json").read_text())
    changed["launches"][-1]["trust_imports"]["prefixes"] = ["lane_mixer", "os"]
    forged = runs.copied(made, tmp_path / "forged")
    (forged / "run.json").write_text(json.dumps(changed))
    for words in (
        ("fit", "--config", config),
        ("fit", "--run_dir", run, "--resume", "auto", "--trainer.max_steps", 4),
        ("validate", run),
        ("generate", run),
        ("generate", forged),
        ("generate", made, "--trust_imports", "lane"),
    ):
        ended = application.run(*words, cwd=tmp_path)
        assert ended.code == 2, ended
        assert "may not be imported" in ended.err
        assert "--trust_imports" in ended.err
    assert not (tmp_path / "imported").exists()
    assert application.run("generate", run, "--tokens", 1, *TRUST, cwd=tmp_path).code == 0
    assert (tmp_path / "imported").exists()


@side_by_side
def test_a_run_remembers_what_was_trusted_and_where(application: Application, tmp_path: Path) -> None:
    config = configuration(tmp_path)
    run = application.fit(config, tmp_path / "run", *TRUST, "--trainer.max_steps", 2)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "lane_mixer.py").write_text("raise SystemExit('the wrong file')")
    for words in (
        ("validate", run),
        ("generate", run, "--tokens", 1),
        ("fit", "--resume", run, "--trainer.max_steps", 4),
    ):
        assert (ended := application.run(*words, cwd=elsewhere)).code == 0, ended


@pytest.mark.stress
@side_by_side
def test_an_optimizer_and_a_schedule_of_ones_own_resume_to_the_same_bits(
    application: Application, tmp_path: Path
) -> None:
    config = configuration(tmp_path)
    content = yaml.safe_load(config.read_text())
    content["model"]["init_args"] |= {
        "optimizer": {"class_path": "lane_mixer.Lion", "init_args": {"beta": 0.8}},
        "schedule": {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 15}},
        "learning_rate": 0.002,
    }
    config = tiny.write(tmp_path / "own.yaml", content)
    clean = application.fit(config, tmp_path / "clean", *TRUST)
    rates = {row["step"]: float(row["train/lr"]) for row in runs.curve(clean) if row.get("train/lr")}
    assert rates["1"] == pytest.approx(0.002)
    assert rates["20"] == pytest.approx(0.0002)
    assert rates["40"] == pytest.approx(0.00002)
    run = tmp_path / "run"
    killed = application.run(
        "fit", "--config", config, "--run_dir", run, *TRUST, cwd=tmp_path, prelude=faults.kill_at("step", 27)
    )
    assert killed.code == -9, killed
    ended = application.go_on(run)
    assert ended.code == 0, ended
    runs.assert_same_run(run, clean)
    refused = application.run(
        "fit", "--resume", run, "--trainer.max_steps", 50, "--model.optimizer", "adamw", cwd=tmp_path
    )
    assert refused.code == 2, refused
    assert "'adamw', but the run has 'lane_mixer.Lion'" in refused.err
