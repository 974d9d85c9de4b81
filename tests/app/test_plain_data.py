"""A LightningDataModule of somebody's own trains; what it cannot know is said, and no resume is quietly inexact."""

from pathlib import Path
from typing import Any

import pytest

from tests.support import faults, runs, tiny
from tests.support.application import REPOSITORY, Application

pytestmark = pytest.mark.process
MODULE = "app.training.LanguageModelModule"
TRUST = ("--trust_imports", "plain_batches")


def written(folder: Path, kind: str = "Counting", **changes: Any) -> Path:
    (folder / "plain_batches.py").write_text((REPOSITORY / "tests" / "app" / "plain_batches.py").read_text())
    configuration = {
        "seed": 7,
        "checkpoint_every_n_steps": 5,
        "model": {
            "class_path": "app.training.GPTModule",
            "init_args": {
                "vocab_size": 11, "block_size": 8, "d_model": 16, "n_layers": 1, "n_heads": 2, "dropout": 0.1,
                "learning_rate": 3e-3, "warmup_steps": 2, "schedule": "constant",
            },
        },
        "data": {"class_path": f"plain_batches.{kind}"},
        "trainer": {
            "accelerator": "cpu", "max_steps": 25, "val_check_interval": 10, "log_every_n_steps": 5,
            "callbacks": [{"class_path": "callbacks.Throughput"}],
        },
    }  # fmt: skip
    return tiny.write(folder / "config.yaml", tiny.changed(configuration, changes))


def test_it_trains_and_says_what_is_absent(application: Application, tmp_path: Path) -> None:
    config, run = written(tmp_path), tmp_path / "run"
    ended = application.run("fit", "--config", config, "--run_dir", run, *TRUST, cwd=tmp_path)
    assert ended.code == 0, ended
    assert "data     plain_batches.Counting: batches of 4 windows" in ended.out
    assert (
        "plain_batches.Counting has no tokenizer: no bits per byte, no texts, and no app generate"
        in ended.out
    )
    assert f"app report {run}" in ended.out
    assert f"app generate {run}" not in ended.out
    rows = runs.curve(run)
    assert [row["step"] for row in rows if "val/loss" in row] == ["10", "20", "25"]
    losses = [float(row["val/loss"]) for row in rows if "val/loss" in row]
    assert losses[-1] < losses[0]
    assert [row["tokens_seen"] for row in rows if "train/loss" in row][-1] == str(25.0 * 4 * 8)
    assert not any(key.endswith("/bpb") for row in rows for key in row)
    evaluated = application.run("validate", run, *TRUST, cwd=tmp_path)
    assert evaluated.code == 0, evaluated
    assert "val/token_perplexity" in evaluated.out
    generated = application.run("generate", run, cwd=tmp_path)
    assert generated.code == 2, generated
    assert "was trained on the batches of plain_batches.Counting, which has no tokenizer" in generated.err
    dry = application.run("fit", "--dry_run", "--config", config, *TRUST, cwd=tmp_path)
    assert dry.code == 0, dry
    assert "25 steps x 4 windows x 8 = 800" in dry.out
    again = application.run("fit", "--resume", run, *TRUST, cwd=tmp_path)
    assert again.out == f"{run} is finished; nothing to do\n", again
    assert "Traceback" not in ended.err + evaluated.err + generated.err


def test_within_an_epoch_it_goes_on_only_where_that_is_asked_for(
    application: Application, tmp_path: Path
) -> None:
    config, run = written(tmp_path), tmp_path / "run"
    words = ("fit", "--config", config, "--run_dir", run, "--resume", "auto", *TRUST)
    assert application.run(*words, cwd=tmp_path, prelude=faults.kill_at("step", 18)).code == -9
    assert runs.saved_steps(run) == [10, 15]
    before = runs.files(run)
    refused = application.run(*words, cwd=tmp_path)
    assert refused.code == 2, refused
    assert "within an epoch of plain_batches.Counting, after 5 of its batches" in refused.err
    assert "--resume_inexact true" in refused.err
    assert {name for name in runs.files(run) if name not in before} <= {"lock"}
    ended = application.run(*words, "--resume_inexact", "true", cwd=tmp_path)
    assert ended.code == 0, ended
    assert "note     data: the checkpoint lies within an epoch" in ended.out
    assert [launch["resume_inexact"] for launch in runs.launches(run)] == [False, True]


def test_at_the_end_of_an_epoch_it_goes_on_exactly(application: Application, tmp_path: Path) -> None:
    config, clean, run = written(tmp_path), tmp_path / "clean", tmp_path / "run"
    application.fit(config, clean, *TRUST)
    words = ("fit", "--config", config, "--run_dir", run, "--resume", "auto", *TRUST)
    assert application.run(*words, cwd=tmp_path, prelude=faults.kill_at("step", 13)).code == -9
    assert runs.saved_steps(run)[-1] == 10
    ended = application.run(*words, cwd=tmp_path)
    assert ended.code == 0, ended
    assert not runs.differences(runs.last_checkpoint(run), runs.last_checkpoint(clean))
    assert not runs.differences(runs.curve(run), runs.curve(clean))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loader_with_a_state_goes_on_exactly_anywhere(
    application: Application, tmp_path: Path, accumulation: int
) -> None:
    config = written(tmp_path, "Stateful", trainer__accumulate_grad_batches=accumulation)
    clean, run = tmp_path / "clean", tmp_path / "run"
    application.fit(config, clean, *TRUST)
    words = ("fit", "--config", config, "--run_dir", run, "--resume", "auto", *TRUST)
    assert application.run(*words, cwd=tmp_path, prelude=faults.kill_at("step", 18)).code == -9
    assert runs.saved_steps(run)[-1] == 15
    ended = application.run(*words, cwd=tmp_path)
    assert ended.code == 0, ended
    assert not runs.differences(runs.last_checkpoint(run), runs.last_checkpoint(clean))
    assert not runs.differences(runs.curve(run), runs.curve(clean))


def test_a_network_without_a_block_size_takes_that_of_the_windows(
    application: Application, tmp_path: Path
) -> None:
    network = {"class_path": "plain_batches.Bigrams"}
    config = written(tmp_path, "Sized", model={"class_path": MODULE, "init_args": {"network": network}})
    ended = application.run("fit", "--config", config, "--run_dir", tmp_path / "run", *TRUST, cwd=tmp_path)
    assert "25 of 4 windows x 8 tokens" in ended.out
    evaluated = application.run("validate", tmp_path / "run", *TRUST, cwd=tmp_path)
    assert evaluated.code == 0, evaluated


def test_mistakes_are_one_line(application: Application, tmp_path: Path) -> None:
    for kind, changes, said in (
        ("Wrong", {}, "data: plain_batches.Wrong: train_dataloader must give (idx, targets), each (B, T) int64"),
        (
            "Counting", {"model__init_args": {"block_size": 8, "d_model": 16, "n_layers": 1, "n_heads": 2}},
            "model.init_args.vocab_size: is not set, and plain_batches.Counting does not decide it",
        ),
        (
            "Counting", {"model__init_args__block_size": 16},
            "gives windows of 8 tokens, and model.init_args.block_size is 16; set it to 8",
        ),
        (
            "Counting", {"model__init_args__vocab_size": 9},
            "; must be at least 0 and below vocab_size, which is 9",  # token 9 or 10: batches are shuffled
        ),
        (
            "Counting", {"model": {"class_path": MODULE, "init_args": {"network": {"class_path": "plain_batches.Bigrams"}}}},
            "model.init_args.network.init_args.vocab_size: is not set, and plain_batches.Counting does not decide it",
        ),
        ("Counting", {"trainer__devices": 2}, "2 processes would all get the same batches of plain_batches.Counting"),
    ):  # fmt: skip
        config = written(tmp_path, kind, **changes)
        ended = application.run("fit", "--config", config, *TRUST, cwd=tmp_path)
        assert ended.code == 2, ended
        assert said in ended.err, ended
        assert len(ended.err.splitlines()) == 1, ended
        assert not (tmp_path / "runs").exists()
