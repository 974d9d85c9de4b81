"""What ``app new`` has written trains, watches and reads text as it says."""

from pathlib import Path

import pytest

from tests.support import runs, tiny
from tests.support.application import Application
from tests.support.side_by_side import SideBySide

pytestmark = pytest.mark.process
side_by_side = SideBySide()
SHORT = ("--trainer.accelerator", "cpu", "--trainer.max_steps", 6, "--trainer.log_every_n_steps", 2)
SMALL = ("--data.block_size", 16, "--data.batch_size", 4, "--data.val_fraction", 0.05)


def begun(application: Application, folder: Path, kind: str, name: str) -> list[str]:
    """Writes an example; the words of the command that trains with it."""
    ended = application.run("new", kind, name, cwd=folder)
    assert ended.code == 0, ended
    return ended.out.splitlines()[-1].split()[1:]


@side_by_side
def test_an_architecture(application: Application, tmp_path: Path) -> None:
    words = begun(application, tmp_path, "architecture", "MyNet")
    text = tiny.write_text(tmp_path / "text.txt", 900)
    ended = application.run(*words, *SHORT, *SMALL, "--data.path", text, "--run_dir", "run", cwd=tmp_path)
    assert ended.code == 0, ended
    assert "MyNet, " in ended.out
    run = tmp_path / "run"
    assert runs.status(run)["step"] == 6
    assert (run / "figures" / "depth-state_size.png").is_file()
    # What was trusted for a run is remembered where it was made.
    generated = application.run("generate", run, "--tokens", 5, cwd=tmp_path)
    assert generated.code == 0, generated


@side_by_side
def test_a_callback(application: Application, tmp_path: Path) -> None:
    words = begun(application, tmp_path, "callback", "GradNoise")
    text = tiny.write_text(tmp_path / "text.txt", 900)
    ended = application.run(*words, *SHORT, *SMALL, "--data.path", text, "--run_dir", "run", cwd=tmp_path)
    assert ended.code == 0, ended
    norms = [float(row["weights/norm"]) for row in runs.curve(tmp_path / "run") if row.get("weights/norm")]
    assert len(norms) == 4  # the first step, and every second one
    assert all(norm > 0 for norm in norms)


@side_by_side
def test_a_data_set(application: Application, tmp_path: Path) -> None:
    words = begun(application, tmp_path, "data", "Poems")
    small = [word for word in SMALL if word not in SMALL[-2:]]
    ended = application.run(*words, *SHORT, *small, "--data.n_lines", 300, "--run_dir", "run", cwd=tmp_path)
    assert ended.code == 0, ended
    assert "data     poems: " in ended.out
    assert "13 symbols" in ended.out
    validated = application.run("validate", "run", cwd=tmp_path)
    assert validated.code == 0, validated


@side_by_side
def test_a_task(application: Application, tmp_path: Path) -> None:
    words = begun(application, tmp_path, "task", "backwards")
    small = ("--data.batch_size", 4, "--data.n_evaluation_windows", 8, "--data.sizes", "{n_symbols: 3}")
    ended = application.run(*words, *SHORT, *small, "--run_dir", "run", cwd=tmp_path)
    assert ended.code == 0, ended
    assert "data     task backwards.backwards: 16 symbols; n_symbols 3; 8 validation windows" in ended.out
    assert "answers  " in ended.out
    assert {"val/accuracy", "val/accuracy/place_0"} <= runs.curve(tmp_path / "run")[-1].keys()
    again = application.run("fit", "--resume", "run", "--trainer.max_steps", 9, *words[-2:], cwd=tmp_path)
    assert again.code == 0, again
    validated = application.run("validate", "run", cwd=tmp_path)
    assert validated.code == 0, validated
    assert "val/accuracy " in validated.out
    refused = application.run(*words, "--data.sizes", "{n_symbol: 3}", cwd=tmp_path)
    assert refused.code == 2
    assert "there is no size 'n_symbol'; did you mean 'n_symbols'?" in refused.err
