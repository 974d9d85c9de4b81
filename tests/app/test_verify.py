"""``app verify``: honest runs are accepted, changed ones refused with what was changed and where."""

import json
from pathlib import Path

import pytest

from app.run.directory import RunDirectory
from app.run.verification import of_files, rows_of
from tests.app.conftest import Reference
from tests.support import faults, runs, tampering, tiny
from tests.support.application import Application
from tests.support.tampering import TAMPERINGS

OF_FILES = sorted({*TAMPERINGS} - {"a text"})  # which needs the framework, to be read


def verdict(run: Path) -> dict:
    return json.loads((run / "verified.json").read_text())


@pytest.mark.stress
@pytest.mark.process
def test_a_run_that_was_killed_is_accepted_whole(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    """From its files, the steps that they lead to, and from the first weights on."""
    run = runs.copied(reference.broken, tmp_path / "run")
    ended = application.go_on(run)
    assert ended.code == 0, ended
    ended = application.run("verify", run, "--all", cwd=tmp_path)
    assert ended.code == 0, ended
    found = verdict(run)
    assert found["verdict"] == "verified"
    assert found["compared"]["steps"] == [1, *range(5, 41, 5)]
    assert found["compared"]["validations"] == [20, 40]
    assert len(found["compared"]["checkpoints"]) == len(tampering.kept(run))
    # And refused with a figure that is not so, although all files agree.
    tampering.metric(run, True)
    tampering.rehash(run)
    ended = application.run("verify", run, "--sample", 9, cwd=tmp_path)
    assert ended.code == 4, ended
    assert "metrics.csv, step 15: train/loss: " in ended.out
    assert verdict(run)["verdict"] == "refused"


@pytest.mark.process
@pytest.mark.parametrize("name", OF_FILES)
def test_what_was_changed_in_a_file_is_told_by_another(
    reference: Reference, tmp_path: Path, name: str
) -> None:
    run = runs.copied(reference.clean, tmp_path / "run")
    TAMPERINGS[name].change(run, False)
    directory = RunDirectory(run)
    found = list(map(str, of_files(directory, rows_of(directory))))
    assert any(TAMPERINGS[name].as_is in each for each in found), found


@pytest.mark.process
def test_an_untouched_run_has_nothing_to_tell(reference: Reference) -> None:
    for run in (reference.clean, reference.broken, reference.baseline):
        directory = RunDirectory(run)
        assert list(of_files(directory, rows_of(directory))) == []


# -- the full form ----------------------------------------------------------------------------------------


def honest(application: Application, folder: Path) -> Path:
    """Killed twice, gone on with each time, with dropout, banks, two micro-batches and an average."""
    text = tiny.write_text(folder / "text.txt")
    content = tiny.tilelli(text, trainer__accumulate_grad_batches=2)
    content["trainer"]["callbacks"] += [
        {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.9}}
    ]
    config = tiny.write(folder / "config.yaml", content)
    run = folder / "run"
    words = ("fit", "--config", config, "--run_dir", run, "--resume", "auto")
    for step in (13, 33):
        killed = application.run(*words, cwd=folder, prelude=faults.kill_at("step", step))
        assert killed.code == -9, killed
    ended = application.run(*words, cwd=folder)
    assert ended.code == 0, ended
    return run


@pytest.mark.stress
@pytest.mark.process
@pytest.mark.parametrize("rehashed", [False, True])
def test_all_tamperings(application: Application, tmp_path: Path, rehashed: bool) -> None:
    run = honest(application, tmp_path)
    for words in (("--all",), ()):
        ended = application.run("verify", run, *words, cwd=tmp_path)
        assert ended.code == 0, ended
    text = tmp_path / "text.txt"
    as_it_was, wrong = text.read_text(), []
    for name in TAMPERINGS:
        wrong.append(tampering.not_refused(application, run, name, rehashed))
        text.write_text(as_it_was)
    assert not any(wrong), "\n".join(wrong)
