"""Runs whose output goes away: they go on to their end, and say what they could not print."""

import os
import signal
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import pytest

from app.run.output import KEPT_LINES
from tests.app.conftest import Reference
from tests.support import faults, runs
from tests.support.application import Application, Ended

pytestmark = pytest.mark.process

#: how descriptor ``{n}`` is lost, as Python source for the process itself, and the reason that it then gives
GONE = {
    "reader gone": ("os.dup2((lambda pair: (os.close(pair[0]), pair[1])[1])(os.pipe()), {n})", "Broken pipe"),
    "disk full": ("os.dup2(os.open('/dev/full', os.O_WRONLY), {n})", "No space left on device"),
    "terminal gone": (
        "os.dup2((lambda pair: (os.close(pair[0]), pair[1])[1])(os.openpty()), {n})",
        "Input/output error",
    ),
    "closed": ("os.close({n}); sys.stdin, sys.stdout, sys.stderr = (None, None, None)", "closed"),
}


def lost(how: str, *numbers: int) -> str:
    """Python source that loses these descriptors."""
    return "; ".join(["import os, sys", *(GONE[how][0].format(n=number) for number in numbers)])


def at_the_start(application: Application, reference: Reference, run: Path, how: str) -> None:
    numbers = (0, 1, 2) if how == "closed" else (1, 2)
    ended = fitted(application, reference, run, lost(how, *numbers) + "\n")
    assert ended.code == 0, ended
    assert ended.out == ended.err == ""
    runs.assert_same_run(run, reference.baseline)
    said = runs.status(run)
    assert said["state"] == "finished"
    kept = said["unprinted"]["standard output"]
    assert kept["reason"] == GONE[how][1]
    assert f"run      {run}" in kept["last"]
    assert kept["last"][-1].startswith(f"         tensorboard --logdir {run}")
    assert len(kept["last"]) == min(kept["lines"], KEPT_LINES)


def fitted(application: Application, reference: Reference, run: Path, fault: str) -> Ended:
    words = ("fit", "--config", reference.baseline_config, "--run_dir", run)
    return application.run(*words, cwd=run.parent, prelude=fault)


def in_training(application: Application, reference: Reference, run: Path) -> None:
    # Also what is said of a stop cannot be said any more.
    stop = f"; os.kill(os.getpid(), {int(signal.SIGTERM)})"
    ended = fitted(application, reference, run, faults.at("step", lost("reader gone", 1, 2) + stop, 13))
    assert ended.code == 143, ended
    assert "step      1/20" in ended.out
    said = runs.status(run)
    assert (said["state"], said["step"], said["exit_code"]) == ("stopped", 13, 143)
    kept = said["unprinted"]["standard output"]
    assert kept["last"][-2:] == ["stopped by SIGTERM after step 13; go on with", f"  app fit --resume {run}"]
    # What one launch could not print is no matter of the next.
    ended = application.go_on(run)
    assert ended.code == 0, ended
    assert runs.status(run)["unprinted"] is None
    runs.assert_same_run(run, reference.baseline)


def at_the_end(application: Application, reference: Reference, run: Path) -> None:
    ended = fitted(application, reference, run, faults.at("end", lost("disk full", 1)))
    assert ended.code == 0, ended
    assert "finished" not in ended.out
    said = runs.status(run)
    assert (said["state"], said["exit_code"]) == ("finished", 0)
    assert said["unprinted"]["standard output"]["last"][0].startswith("finished step 20 after ")


def errors_of_its_own(application: Application, reference: Reference, run: Path) -> None:
    """Its own failure keeps its exit code."""
    fault = lost("disk full", 1, 2) + "\n" + faults.at("step", "raise KeyError('the cause')", 8)
    ended = fitted(application, reference, run, fault)
    assert ended.code == 1, ended
    said = runs.status(run)
    assert (said["state"], said["exit_code"], said["reason"]) == ("failed", 1, "KeyError: 'the cause'")


JOBS: dict[str, Callable[[Application, Reference, Path], None]] = {
    **{how: partial(at_the_start, how=how) for how in GONE},
    "in training": in_training,
    "at the end": at_the_end,
    "its own error": errors_of_its_own,
}


@pytest.fixture(scope="module")
def ended(
    application: Application, reference: Reference, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Future[None]]:
    """All of them, side by side; each job asserts what must hold."""
    folder = tmp_path_factory.mktemp("output")
    return application.begin(
        {
            name: partial(job, application, reference, folder / name.replace(" ", "-"))
            for name, job in JOBS.items()
        }
    )


@pytest.mark.parametrize("name", JOBS)
def test_a_run_goes_on_without_its_output(ended: dict[str, Future[None]], name: str) -> None:
    ended[name].result()


@pytest.mark.parametrize(
    ("how", "code"), [("reader gone", 141), ("disk full", 5), ("closed", 5), ("terminal gone", 5)]
)
def test_generated_text_that_nobody_reads(
    application: Application, reference: Reference, tmp_path: Path, how: str, code: int
) -> None:
    words = ("generate", reference.baseline, "--tokens", 20)
    ended = application.run(*words, cwd=tmp_path, prelude=lost(how, 1) if how != "closed" else CLOSED)
    said = "" if code == 141 else f"error: standard output: {GONE[how][1]}\n"
    assert (ended.code, ended.err) == (code, said)


CLOSED = "import os, sys; os.close(1); sys.stdout = None"


@pytest.mark.parametrize("word", ["--help", "--dry_run"])
def test_what_fit_prints_on_request_is_no_courtesy(
    application: Application, reference: Reference, tmp_path: Path, word: str
) -> None:
    words = ("fit", "--config", reference.baseline_config, word)
    for how, code in (("reader gone", 0), ("disk full", 5)):  # 141 is never the end of a fit
        ended = application.run(*words, cwd=tmp_path, prelude=lost(how, 1))
        assert ended.code == code, ended
        assert ended.err == ("" if code == 0 else f"error: standard output: {GONE[how][1]}\n")


@pytest.mark.stress
@pytest.mark.parametrize("how", GONE)
def test_two_ranks_without_output(
    application: Application, reference: Reference, tmp_path: Path, how: str
) -> None:
    words = (
        "fit",
        "--config",
        reference.baseline_config,
        "--run_dir",
        tmp_path / "run",
        "--trainer.devices",
        2,
    )
    numbers = (0, 1, 2) if how == "closed" else (1, 2)
    ended = application.run(*words, cwd=tmp_path, prelude=lost(how, *numbers))
    assert ended.code == 0, ended
    assert runs.status(tmp_path / "run")["unprinted"]["standard output"]["reason"] == GONE[how][1]
    assert sorted(os.listdir(tmp_path)) == ["data", "run"]
