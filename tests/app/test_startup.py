"""What is answered before anything heavy is imported, and how fast."""

import re
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pytest

import app.training
import callbacks
import datamodules
from app import __version__
from app.run.lock import RunLock
from tests.app.conftest import Reference
from tests.support import runs
from tests.support.application import Application, Ended, environment, real

pytestmark = pytest.mark.process


def answered(arguments: Sequence[Any], cwd: Path) -> Ended:
    """The end of a fresh process that took less than a second and imported no torch."""
    seconds = []
    for _ in range(3):  # a busy machine may well slow one of them down
        started = time.monotonic()
        process = real(arguments, cwd, env={"PYTHONPROFILEIMPORTTIME": "1"})
        out, err = process.communicate(timeout=60)
        seconds.append(time.monotonic() - started)
        lines = err.splitlines()
        imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
        assert "app.cli" in imported
        assert not imported & {"torch", "numpy", "lightning", "jsonargparse"}, imported
        if seconds[-1] < 1:
            said = "\n".join(line for line in lines if not line.startswith("import time:"))
            return Ended(process.returncode, out, said)
    raise AssertionError(f"{' '.join(map(str, arguments))} took {seconds} s\n{out}")


def test_help_lists_the_commands(tmp_path: Path) -> None:
    ended = answered(["--help"], tmp_path)
    assert ended.code == 0
    for command in ("fit", "validate", "test", "generate"):
        assert f"\n  {command} " in ended.out


def test_the_same_without_a_command_is_a_mistake(application: Application, tmp_path: Path) -> None:
    ended = application.run(cwd=tmp_path)
    assert ended.code == 2
    assert "commands:" in ended.out
    assert application.run("--version", cwd=tmp_path).out == f"archlab {__version__}\n"


def test_an_unknown_command_gets_a_suggestion(application: Application, tmp_path: Path) -> None:
    ended = application.run("fti", cwd=tmp_path)
    assert ended.code == 2
    assert ended.err == "error: unknown command 'fti'; did you mean 'fit'?\n"
    for word, meant in (("train", "fit"), ("eval", "validate"), ("sample", "generate")):
        ended = application.run(word, cwd=tmp_path)
        assert ended.err == f"error: unknown command {word!r}; did you mean {meant!r}?\n"


def test_a_mistake_has_a_traceback_for_developers_only(application: Application, tmp_path: Path) -> None:
    ended = application.run("fit", "--config", "nowhere", cwd=tmp_path)
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended
    assert ended.err.startswith("error: --config nowhere: ")
    ended = application.run("fit", "--config", "nowhere", cwd=tmp_path, env={"APP_DEBUG": "1"})
    assert ended.code == 2
    assert "Traceback" in ended.err
    assert "error: --config nowhere: " in ended.err


def test_fit_lists_its_options(application: Application, tmp_path: Path) -> None:
    ended = application.run("fit", "--help", cwd=tmp_path)
    assert ended.code == 0, ended
    for option in (
        "--config",
        "--run_dir",
        "--resume",
        "--trust_imports",
        "--seed",
        "--trainer.max_steps",
        "--model",
    ):
        assert option in ended.out, option
    lines = ended.out.splitlines()
    assert len(lines) <= 90
    assert max(map(len, lines)) <= 80
    for name in (*callbacks.__all__, *datamodules.__all__, *app.training.__all__):
        if name not in ("MeasureWatcher", "Watcher", "SupervisedDDPStrategy", "SupervisedFSDPStrategy"):
            assert sum(re.match(rf"  {name}  +\w", line) is not None for line in lines) == 1, name
    assert not list(tmp_path.iterdir())


def test_the_options_need_none_of_the_frameworks_optional_packages(tmp_path: Path) -> None:
    process = real(["fit", "--help"], tmp_path, env={"PYTHONPROFILEIMPORTTIME": "1"})
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "--trainer.max_steps" in out
    imported = {line.rpartition("|")[2].strip() for line in err.splitlines()}
    assert "lightning.pytorch" in imported
    assert not imported & {"matplotlib", "scipy", "transformers", "torch._dynamo"}


@pytest.mark.stress
def test_the_options_cost_less_than_the_framework(tmp_path: Path) -> None:
    """Processor time of a process that lists them, against one that imports the framework; medians of five each."""
    framework = [sys.executable, "-c", "import lightning.pytorch"]
    listing = [sys.executable, "-m", "app", "fit", "--help"]
    seconds: dict[str, list[float]] = {"framework": [], "listing": []}
    for _ in range(5):
        for name, command in (("framework", framework), ("listing", listing)):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(command, cwd=tmp_path, env=environment(), check=True, capture_output=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds[name].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert median(seconds["listing"]) <= 0.5 * median(seconds["framework"]), seconds


def test_a_finished_run_is_left_alone(reference: Reference, tmp_path: Path) -> None:
    before = runs.files(reference.baseline)
    ended = answered(["fit", "--run_dir", reference.baseline, "--resume", "auto"], tmp_path)
    assert ended.code == 0, ended
    assert "is finished; nothing to do" in ended.out
    assert runs.files(reference.baseline) == before


def test_a_run_in_use_is_refused(reference: Reference, tmp_path: Path) -> None:
    run = runs.copied(reference.broken, tmp_path / "run")
    with RunLock(run):
        before = runs.files(run)
        for arguments in (["--run_dir", run, "--resume", "auto"], ["--resume", run]):
            ended = answered(["fit", *arguments], tmp_path)
            assert ended.code == 2, ended
            assert "is in use by process" in ended.err
        assert runs.files(run) == before
