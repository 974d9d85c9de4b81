"""Figures outside of training: exact, complete, and still there after a kill."""

import json
import re
from pathlib import Path

import pytest

from tests.support import faults, runs, tiny
from tests.support.application import Application, Ended

pytestmark = pytest.mark.process


def test_validate_counts_every_token_also_where_the_run_looked_at_fewer(
    application: Application, tmp_path: Path, text: Path
) -> None:
    config = tiny.write(tmp_path / "a.yaml", tiny.gpt(text, trainer__max_steps=4))
    run = tmp_path / "a"
    words = ("fit", "--config", config, "--run_dir", run, "--trainer.limit_val_batches")
    ended = application.run(*words, 1, cwd=tmp_path)
    assert ended.code == 0, ended
    assert "1: validation sees 1 batch of its split only" in ended.out
    fingerprint = runs.launches(run)[0]["data"]
    ended = application.run("validate", run, cwd=tmp_path)
    assert ended.code == 0, ended
    counted = re.search(r"val/tokens +([\d,]+)", ended.out)
    assert counted is not None
    assert int(counted[1].replace(",", "")) == fingerprint["val_tokens"] - 1
    assert json.loads((run / "summary.json").read_text())["val/tokens"] < fingerprint["val_tokens"] - 1


def test_what_counting_reaches_stands_beside_the_loss(
    application: Application, tmp_path: Path, text: Path
) -> None:
    settings = {"data__init_args__test_fraction": 0.1, "data__init_args__data_dir": str(tmp_path / "data")}
    config = tiny.write(tmp_path / "a.yaml", tiny.gpt(text, trainer__max_steps=4, **settings))
    run = tmp_path / "a"
    trained = application.run("fit", "--config", config, "--run_dir", run, cwd=tmp_path)
    assert trained.code == 0, trained
    # The counts of both splits are kept since then.
    kept = faults.replaced("datamodules.count_model.chosen", "None")
    validated, tested = (
        application.run(command, run, cwd=tmp_path, prelude=kept) for command in ("validate", "test")
    )
    assert counts_of(validated) == counts_of(trained)
    assert counts_of(tested) != counts_of(trained)
    for ended in (trained, validated, tested):
        assert counts_of(ended).endswith(" nats: the network does not reach it"), ended
    # They are gone: counted again, and nothing is written.
    (file,) = (tmp_path / "data" / "baselines").iterdir()
    file.unlink()
    assert counts_of(application.run("test", run, cwd=tmp_path)) == counts_of(tested)
    assert not file.exists()
    # They cannot be had: the loss is told all the same.
    ended = application.run("validate", run, cwd=tmp_path, prelude=kept)
    assert ended.code == 0, ended
    assert "val/loss " in ended.out
    assert ended.out.endswith(
        "note     what counting reaches is left out (TypeError: 'NoneType' object is not callable)\n"
    )


def counts_of(ended: Ended) -> str:
    (line,) = (line for line in ended.out.splitlines() if line.startswith("counts   "))
    return line


def test_a_share_that_is_no_batch_is_refused(application: Application, tmp_path: Path, text: Path) -> None:
    config = tiny.write(tmp_path / "a.yaml", tiny.gpt(text, trainer__max_steps=4))
    words = ("fit", "--config", config, "--run_dir", tmp_path / "a", "--trainer.limit_val_batches")
    ended = application.run(*words, "0.1", cwd=tmp_path)
    assert ended.code == 2, ended
    found = re.search(r"0\.1 of (\d) validation batches is none; write ([\d.]+) or more", ended.err)
    assert found, ended
    assert not (tmp_path / "a").exists()
    assert application.run(*words, found[2], cwd=tmp_path).code == 0


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


def test_the_validation_split_is_unseen_while_a_run_is_tuned(
    application: Application, tmp_path: Path, text: Path
) -> None:
    changes = {
        "trainer__max_steps": 4,
        "trainer__val_check_interval": 4,
        "data__init_args__tuning_fraction": 0.1,
    }
    run = application.fit(tiny.write(tmp_path / "a.yaml", tiny.gpt(text, **changes)), tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    data = runs.launches(run)[-1]["data"]
    validated = application.run("validate", run, cwd=tmp_path)
    assert validated.code == 0, validated
    assert "another text" not in validated.out
    assert re.search(rf"val/tokens +{data['val_tokens'] - 1:,}\n", validated.out)
    assert summary["val/tokens"] != data["val_tokens"] - 1
