"""Going on with a run: from where, with what, and what may not change."""

import re
from pathlib import Path

import pytest
import torch

from app.run import checkpoint
from tests.app.conftest import Reference
from tests.support import faults, runs, tiny
from tests.support.application import Application
from tests.support.side_by_side import SideBySide

pytestmark = pytest.mark.process
side_by_side = SideBySide()


def a_finished_run(reference: Reference, folder: Path) -> Path:
    """A copy of the finished baseline run: 20 steps, checkpoints at 15 and 20."""
    return runs.copied(reference.baseline, folder / "run")


@side_by_side
def test_a_run_needs_no_configuration_to_go_on(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    run = runs.copied(reference.broken, tmp_path / "run")
    titled = faults.replaced(
        "app.analysis.curves.draw_learning_curve", "lambda *args, title, **rest: print('title', title)"
    )
    ended = application.run("fit", "--resume", run, cwd=tmp_path, prelude=titled, whole_ending=True)
    assert ended.code == 0, ended
    assert f"run      {run}\nresumed  after step 30\n" in ended.out
    assert f"\ntitle {reference.config.stem}: " in ended.out
    runs.assert_same_run(run, reference.clean)
    first, second = runs.launches(run)
    assert (first["resumed_from"], second["resumed_from"]) == (None, "resume-000030.ckpt")
    assert second["changes"] == []


@side_by_side
def test_a_validation_at_the_first_resumed_step_is_made(application: Application, tmp_path: Path) -> None:
    text = tiny.write_text(tmp_path / "text.txt")
    settings = {"checkpoint_every_n_steps": 4, "trainer__val_check_interval": 5, "trainer__max_steps": 10}
    config = tiny.write(tmp_path / "config.yaml", tiny.gpt(text, **settings))
    clean = application.fit(config, tmp_path / "clean")
    run = tmp_path / "run"
    words = ("fit", "--config", config, "--run_dir", run, "--resume", "auto")
    killed = application.run(*words, cwd=tmp_path, prelude=faults.kill_at("step", 5))
    assert killed.code == -9, killed
    assert runs.saved_steps(run) == [4]
    application.go_on(run)
    assert runs.validated_steps(run) == runs.validated_steps(clean) == [5, 10]
    runs.assert_same_run(run, clean)


@side_by_side
def test_an_older_checkpoint_gives_up_the_later_history(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    finished = a_finished_run(reference, tmp_path)
    older = finished / "checkpoints" / "resume-000015.ckpt"
    assert runs.saved_steps(finished, "best") == [20]
    # A kill before anything new is saved or logged must not bring it back.
    killed = application.run("fit", "--resume", older, cwd=tmp_path, prelude=faults.kill_at("step", 19))
    assert killed.code == -9, killed
    assert (runs.saved_steps(finished), runs.saved_steps(finished, "best")) == ([15], [])
    ended = application.go_on(finished)
    assert "resumed  after step 15\n" in ended.out, ended
    runs.assert_same_run(finished, reference.baseline)


@side_by_side
def test_a_finished_run_gets_more_steps(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    finished = a_finished_run(reference, tmp_path)
    ended = application.go_on(finished, "--trainer.max_steps", 25, "--model.init_args.learning_rate", "1e-4")
    assert ended.code == 0, ended
    changes = [
        "model.init_args.learning_rate: 0.003 -> 0.0001",
        "trainer.max_steps: 20 -> 25",
    ]
    assert re.findall(r"^changed  (.*)$", ended.out, re.MULTILINE) == changes
    assert runs.launches(finished)[-1]["changes"] == changes
    assert runs.status(finished) == {
        "state": "finished",
        "step": 25,
        "exit_code": 0,
        "reason": "",
        "unprinted": None,
    }
    assert runs.validated_steps(finished) == [10, 20, 25]
    rates = [float(row["train/lr"]) for row in runs.curve(finished) if "train/lr" in row]
    assert rates[-1] <= 1e-4 < rates[-2]
    # A new launch of the same run goes by the new values, and by the command line before them.
    ended = application.go_on(finished, "--model.init_args.learning_rate", "2e-4", "--trainer.max_steps=26")
    assert "changed  model.init_args.learning_rate: 0.0001 -> 0.0002" in ended.out, ended


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model.init_args.n_layers", "3"), "model.init_args.n_layers: 3, but the run has 2"),
        (("--data.init_args.block_size", "32"), "model.init_args.block_size: 32, but the run has 16"),
        (("--seed", "8"), "seed: 8, but the run has 7"),
        (
            ("--model", "app.training.TilelliModule", "--model.init_args.d_model", "16"),
            "model: app.models.tilelli.network.TilelliLM, but the run has app.models.gpt.network.GPT",
        ),
    ],
)
def test_what_makes_it_another_run_is_refused(
    application: Application, options: tuple[str, ...], said: str, reference: Reference, tmp_path: Path
) -> None:
    finished = a_finished_run(reference, tmp_path)
    before = runs.files(finished)
    ended = application.go_on(finished, "--trainer.max_steps", 25, *options)
    assert ended.code == 2, ended
    assert said in ended.err
    assert "Traceback" not in ended.err
    assert runs.files(finished) == before


@side_by_side
def test_another_text_is_refused(application: Application, tmp_path: Path) -> None:
    text = tiny.write_text(tmp_path / "text.txt")
    config = tiny.write(tmp_path / "config.yaml", tiny.gpt(text, trainer__max_steps=4))
    run = application.fit(config, tmp_path / "run")
    content = text.read_text()
    text.write_text(content.replace("fox", "ox", 1))
    ended = application.go_on(run, "--trainer.max_steps", 8)
    assert ended.code == 2, ended
    assert "data: sha256 is" in ended.err
    assert "restore the text" in ended.err
    text.write_text(content)
    assert application.go_on(run, "--trainer.max_steps", 8).code == 0


@side_by_side
def test_an_existing_run_is_not_overwritten(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    finished = a_finished_run(reference, tmp_path)
    before = runs.files(finished)
    ended = application.run(
        "fit", "--config", reference.baseline_config, "--run_dir", finished, cwd=finished.parent
    )
    assert ended.code == 2, ended
    assert f"--run_dir {finished}: already holds a run; continue it with --resume {finished}" in ended.err
    assert runs.files(finished) == before


@side_by_side
def test_weights_alone_begin_a_new_run(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    finished = a_finished_run(reference, tmp_path)
    seen = tmp_path / "weights.pt"
    looks = faults.at("step", f"torch.save(self.state_dict(), {str(seen)!r})", 1)
    ended = application.run(
        "fit", "--config", reference.baseline_config, "--init_from", finished, "--trainer.max_steps", 2,
        "--run_dir", tmp_path / "new", cwd=tmp_path, prelude=looks,
    )  # fmt: skip
    assert ended.code == 0, ended
    assert "resumed" not in ended.out
    assert runs.launches(tmp_path / "new")[0]["init_from"].endswith("best-000020.ckpt")
    assert runs.status(tmp_path / "new")["step"] == 2
    assert not runs.differences(torch.load(seen, weights_only=True), runs.weights(finished))
    optimizer = runs.last_checkpoint(tmp_path / "new")["optimizer_states"][0]["state"]
    assert {float(entry["step"]) for entry in optimizer.values()} == {2.0}


@side_by_side
def test_weights_that_do_not_fit_are_refused(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    finished = a_finished_run(reference, tmp_path)
    ended = application.run(
        "fit", "--config", reference.baseline_config, "--init_from", finished, "--model.init_args.d_model", 32,
        "--run_dir", tmp_path / "new", cwd=tmp_path,
    )  # fmt: skip
    assert ended.code == 2, ended
    assert "the weights do not fit this network" in ended.err
    assert not (tmp_path / "new").exists()


@side_by_side
def test_a_run_from_before_an_argument_was_there_goes_on(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    finished = a_finished_run(reference, tmp_path)
    file = finished / "checkpoints" / "resume-000020.ckpt"
    content = checkpoint.read(file)
    del content["archlab"]["network"]["init_args"]["tie_weights"]
    checkpoint.write(content, file)
    ended = application.go_on(finished, "--trainer.max_steps", 21)
    assert ended.code == 0, ended
    refused = application.go_on(finished, "--trainer.max_steps", 22, "--model.init_args.dropout", 0.3)
    assert refused.code == 2, refused
    assert "model.init_args.dropout: 0.3, but the run has 0.1" in refused.err


@side_by_side
def test_options_that_exclude_each_other(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    finished = a_finished_run(reference, tmp_path)
    config = reference.baseline_config
    for words, said in (
        (("--resume", finished, "--init_from", finished), "--resume and --init_from exclude each other"),
        (("--resume", "auto"), "--resume auto: needs --run_dir DIR"),
        (("--resume", finished, "--run_dir", tmp_path / "other"), "differs from the run that is resumed"),
        (("--resume", tmp_path / "nowhere"), "no such run directory or checkpoint file"),
        (("--resume", finished / "checkpoints" / "resume-000007.ckpt"), "there are resume-000015.ckpt"),
        (("--resume", tmp_path), "not a run directory"),
        (("--run_dir", tmp_path / "new", "--resume", "auto"), "--config is missing"),
        (("--config", config, "--run_dir", tmp_path / "new", "--init_from", tmp_path), "not a run directory"),
    ):
        ended = application.run("fit", *words, cwd=tmp_path)
        assert ended.code == 2, ended
        assert said in ended.err, ended
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@side_by_side
def test_a_saved_configuration_brings_no_run_directory(
    application: Application, tmp_path: Path, reference: Reference
) -> None:
    finished = a_finished_run(reference, tmp_path)
    config = finished / "config.yaml"
    config.write_text(config.read_text() + f"run_dir: {finished}\nresume: {finished}\n")
    before = runs.files(finished)
    ended = application.run("fit", "--config", config, "--trainer.max_steps", 2, cwd=tmp_path)
    assert ended.code == 0, ended
    assert f"run      {Path('runs') / 'config'}/" in ended.out
    assert runs.files(finished) == before
