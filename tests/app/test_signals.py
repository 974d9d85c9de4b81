"""Orderly stops: a whole step, a verified checkpoint, the right exit code, and a run that goes on as if nothing was."""

import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import pytest

from tests.app.conftest import Reference
from tests.support import faults, runs, stuck, tiny
from tests.support.application import Application, alive, assert_gone, children

pytestmark = pytest.mark.process

CODES = {signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGHUP: 143, signal.SIGINT: 130}
ONE_OF_EACH_CODE = (signal.SIGTERM, signal.SIGINT)

#: where a signal arrives in a run of 40 steps, and after which step the run stops; None if it is too late to
PLACES = {
    "step": (33, 33),  # the first of its two micro-batches: the step is finished
    "validation": (40, 40),  # all of it is made again
    "validation end": (40, None),
    "save": (40, 40),
    "summary": (0, None),
}
#: the first worker of the validation at step 40 ends the whole group: just forked, and once it has PyTorch's handlers
WHILE_WORKERS_START = """
import os, signal
import torch.utils.data._utils.signal_handling as handling
n_forks = 0
def count():
    global n_forks
    n_forks += 1
def strike():
    if n_forks == 3:
        os.killpg(0, signal.SIGTERM)
os.register_at_fork(before=count, after_in_child=strike)
original = handling._set_worker_signal_handlers
def set_and_strike():
    original()
    strike()
handling._set_worker_signal_handlers = set_and_strike
"""
#: what blocks, and the words that the process is said to have waited for
BLOCKED = {
    "rendezvous": "for 1 other rank",
    "first step": "in _put.<locals>.faulty (",
    "later step": "in _put.<locals>.faulty (",
    "summary": "in _put.<locals>.faulty (",
}
UNHEARD = faults.replaced(
    "app.run.rank_processes.OtherRanks.say",
    "lambda self, subject, make: original(self, subject, make) if subject != 'meet' else None",
) + faults.replaced(
    "app.training.local_store.begin_process_group",
    "lambda *args: (print('meets', flush=True), original(*args))",
)
BEFORE_THE_FIRST_STEP = ("model", "setup", "optimizer", "stage", "start")


@pytest.fixture(scope="module")
def stops(
    application: Application, reference: Reference, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Future[None]]:
    """Runs that are stopped and go on, side by side; each job asserts what must hold."""
    folder = tmp_path_factory.mktemp("stops")
    jobs: dict[str, Callable[[], None]] = {}
    for signum in ONE_OF_EACH_CODE:
        jobs[signum.name] = partial(at_a_random_moment, application, reference, folder / signum.name, signum)
    for place in PLACES:
        jobs[place] = partial(at_an_awkward_place, application, reference, folder / place, place)
    for place in ("rendezvous", "later step"):
        jobs[f"blocked {place}"] = partial(while_it_blocks, application, folder / f"blocked-{place}", place)
    for place in BEFORE_THE_FIRST_STEP:
        jobs[place] = partial(before_the_first_step, application, reference, folder / place, place)
    return application.begin(jobs)


@pytest.mark.parametrize("name", [signum.name for signum in ONE_OF_EACH_CODE])
def test_a_stop_at_a_random_moment(stops: dict[str, Future[None]], name: str) -> None:
    stops[name].result()


def at_a_random_moment(
    application: Application, reference: Reference, run: Path, signum: signal.Signals
) -> None:
    seed = time.time_ns()
    moment = random.Random(seed).uniform(0, 0.5)
    what = f"seed {seed}, signal {moment:.3f} s after the first step"
    # Signals to the whole group reach the workers too, as a scheduler's or a terminal's do.
    process = application.start(
        "fit",
        "--config",
        reference.config,
        "--run_dir",
        run,
        "--data.init_args.num_workers",
        2,
        cwd=run.parent,
    )
    process.wait_for("step      1/40")
    time.sleep(moment)
    process.kill(signum, group=True)
    sent = time.monotonic()
    ended = process.wait()
    if ended.code != 0:  # else the signal came after the last step
        assert time.monotonic() - sent < 10
        assert ended.code == CODES[signum], f"{what}\n{ended}"
        assert f"stopped by {signum.name} after step " in ended.out
        assert ended.out.rstrip().endswith(f"app fit --resume {run}")
        assert ended.err == "", ended
        said = runs.status(run)
        assert (said["state"], said["exit_code"], said["reason"]) == ("stopped", ended.code, signum.name)
        assert said["step"] == runs.saved_steps(run)[-1] == runs.last_checkpoint(run)["archlab"]["step"]
        assert not (run / "lock").exists()
        ended = application.go_on(run)
        assert f"resumed  after step {said['step']}\n" in ended.out, ended
    assert ended.code == 0, f"{what}\n{ended}"
    runs.assert_same_run(run, reference.clean, what)


@pytest.mark.stress
@pytest.mark.timeout(1200)
def test_many_stops_at_random_moments(application: Application, reference: Reference, tmp_path: Path) -> None:
    jobs = {
        f"{signum.name} {number}": partial(
            at_a_random_moment, application, reference, tmp_path / f"{signum.name}-{number}", signum
        )
        for signum in CODES
        for number in range(20)
    }
    for future in application.begin(jobs).values():
        future.result()


@pytest.mark.parametrize("place", PLACES)
def test_a_stop_at_an_awkward_place(stops: dict[str, Future[None]], place: str) -> None:
    stops[place].result()


def at_an_awkward_place(application: Application, reference: Reference, run: Path, place: str) -> None:
    step, stopped_after = PLACES[place]
    runs.copied(reference.broken, run)
    words = ("fit", "--run_dir", run, "--resume", "auto", "--data.init_args.num_workers", 2)
    fault = faults.signal_at(place, signal.SIGTERM, step, group=True)
    ended = application.run(*words, cwd=run.parent, prelude=fault, timeout=90)
    if stopped_after is not None:
        assert ended.code == 143, ended
        assert f"stopped by SIGTERM after step {stopped_after};" in ended.out
        assert runs.status(run)["state"] == "stopped"
        ended = application.go_on(run)
    assert ended.code == 0, ended
    assert runs.status(run)["state"] == "finished"
    runs.assert_same_run(run, reference.clean)


@pytest.mark.stress
def test_a_stop_while_workers_start(application: Application, reference: Reference, tmp_path: Path) -> None:
    run = runs.copied(reference.broken, tmp_path / "run")
    ended = application.run(
        "fit", "--run_dir", run, "--resume", "auto", "--data.init_args.num_workers", 2, cwd=run.parent,
        prelude=WHILE_WORKERS_START, timeout=90,
    )  # fmt: skip
    assert ended.code == 143, ended
    assert ended.err == ""
    assert "stopped by SIGTERM after step 40;" in ended.out
    ended = application.go_on(run)
    assert ended.code == 0, ended
    runs.assert_same_run(run, reference.clean)


@pytest.mark.parametrize("place", ["rendezvous", "later step"])
def test_a_stop_while_nothing_comes_back(stops: dict[str, Future[None]], place: str) -> None:
    stops[f"blocked {place}"].result()


@pytest.mark.stress
@pytest.mark.parametrize("place", BLOCKED)
def test_a_stop_while_nothing_comes_back_in_time(
    application: Application, tmp_path: Path, place: str
) -> None:
    while_it_blocks(application, tmp_path / "blocked", place, stop_seconds=8.0)


def while_it_blocks(application: Application, folder: Path, place: str, stop_seconds: float = 0.5) -> None:
    folder.mkdir()
    config = tiny.write(folder / "config.yaml", tiny.gpt(tiny.write_text(folder / "text.txt")))
    run = folder / "run"
    words = ["fit", "--config", config, "--run_dir", run, "--data.init_args.num_workers", 1]
    if place == "rendezvous":
        # The other rank never hears where to meet.
        process = application.start(*words, "--trainer.devices", 2, cwd=folder, prelude=UNHEARD)
        process.wait_for("meets")
        time.sleep(0.5)  # said before the main thread is in C++, where it waits
    else:
        fault = faults.replaced("app.run.watch.STOP_SECONDS", str(stop_seconds))
        hook, step = {"first step": ("step", 1), "later step": ("step", 12)}.get(place, (place, 0))
        fault += faults.at(hook, stuck.source("stuck"), step)
        process = application.start(*words, cwd=folder, prelude=fault)
        process.wait_for("stuck")
    started = [process.pid, *children(process.pid)]
    process.kill(signal.SIGTERM)
    began = time.monotonic()
    ended = process.wait(90)
    assert time.monotonic() - began < 10
    assert ended.code == 143, ended
    reason = f"SIGTERM while the process waited {BLOCKED[place]}"
    step, saved = {"later step": (11, [10]), "summary": (40, [30, 40])}.get(place, (0, []))
    last = "; nothing was saved after the last checkpoint\n" if saved else "\n"
    assert ended.err.startswith(f"\nstopped by {reason}"), ended
    assert ended.err.endswith(last)
    assert ended.err.count("\n") == 2
    said = runs.status(run)
    assert (said["state"], said["exit_code"], said["step"]) == ("stopped", 143, step)
    assert said["reason"].startswith(reason)
    assert not (run / "lock").exists()
    assert_gone(started)
    assert runs.saved_steps(run) == saved
    if place == "summary":
        assert application.go_on(run).code == 0
        assert (run / "summary.json").exists()


@pytest.mark.parametrize("place", BEFORE_THE_FIRST_STEP)
def test_a_stop_before_the_first_step(stops: dict[str, Future[None]], place: str) -> None:
    stops[place].result()


def before_the_first_step(application: Application, reference: Reference, run: Path, place: str) -> None:
    words = ("fit", "--config", reference.baseline_config, "--run_dir", run, "--resume", "auto")
    ended = application.run(*words, cwd=run.parent, prelude=faults.signal_at(place, signal.SIGTERM))
    assert ended.code == 143, ended
    assert ended.err == ""
    assert ended.out.endswith("stopped by SIGTERM before the first step; start the same command again\n")
    assert not (run / "lock").exists()
    if run.exists():
        assert runs.status(run)["exit_code"] == 143
        assert runs.status(run)["state"] == "stopped"
        assert not [path for path in run.rglob("*") if path.name.endswith(".tmp")]
    ended = application.run(*words, cwd=run.parent)
    assert ended.code == 0, ended
    runs.assert_same_run(run, reference.baseline)


def test_a_stop_before_anything_was_begun(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    # While the text is read, long before there is a run.
    reading = faults.replaced(
        "datamodules.char.read_char_corpus",
        f"lambda *args, **kwargs: __import__('os').kill(__import__('os').getpid(), {int(signal.SIGTERM)})",
    )
    run = tmp_path / "deep" / "run"
    ended = application.run(
        "fit", "--config", reference.baseline_config, "--run_dir", run, cwd=tmp_path, prelude=reading
    )
    assert ended.code == 143, ended
    assert ended.err == ""
    assert not run.exists()


#: commands beside fit, and what sends them a signal in the midst of their work
OTHERS = {
    "generate": faults.replaced(
        "datamodules.stream.TextStream.add", "lambda *_: __import__('os').kill(0, $signum)"
    ),
    "validate": faults.signal_at("validation", 0).replace(", 0)", ", $signum)"),
    "crystallize": faults.replaced(
        "app.commands.crystallize._crystallize", "lambda *_: __import__('os').kill(0, $signum)"
    ),
    "compare": faults.replaced("app.commands.compare.run", "lambda *_: __import__('os').kill(0, $signum)"),
}


@pytest.mark.parametrize(
    ("command", "signum"),
    [
        ("generate", signal.SIGINT),
        ("validate", signal.SIGTERM),
        ("crystallize", signal.SIGTERM),
        ("compare", signal.SIGINT),
    ],
)
def test_other_commands_leave_without_a_word(
    application: Application, reference: Reference, tmp_path: Path, command: str, signum: signal.Signals
) -> None:
    prelude = OTHERS[command].replace("$signum", str(int(signum)))
    ended = application.run(command, reference.baseline, cwd=tmp_path, prelude=prelude)
    assert ended.code == CODES[signum], ended
    goes_on = "\nstopped; the same command goes on after the last finished stage\n"
    assert ended.err == (goes_on if command == "crystallize" else "")


def test_a_signal_on_the_way_out_changes_nothing(application: Application, tmp_path: Path) -> None:
    late = "import atexit, os, signal; atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))"
    ended = application.run("--version", cwd=tmp_path, prelude=late)
    assert (ended.code, ended.err) == (0, "")


def test_two_interrupts_leave_at_once(application: Application, tmp_path: Path) -> None:
    text = tiny.write_text(tmp_path / "text.txt")
    config = tiny.write(tmp_path / "config.yaml", tiny.gpt(text, trainer__max_steps=100_000))
    # A step that takes for ever.
    hangs = faults.at("step", "print('hangs', flush=True); import time; time.sleep(60)", 5)
    process = application.start(
        "fit", "--config", config, "--run_dir", tmp_path / "run", cwd=tmp_path, prelude=hangs
    )
    process.wait_for("hangs")
    process.kill(signal.SIGINT)
    time.sleep(0.3)
    assert alive(process.pid)
    process.kill(signal.SIGINT)
    sent = time.monotonic()
    ended = process.wait(10)
    assert time.monotonic() - sent < 2
    assert ended.code == 130, ended
    assert "interrupted twice: leaving at once, without a checkpoint" in ended.err


def test_a_hang_up_that_was_to_be_ignored_is_ignored(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    nohup = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    ended = application.run(
        "fit", "--config", reference.baseline_config, "--run_dir", tmp_path / "run", cwd=tmp_path,
        prelude=nohup + faults.signal_at("step", signal.SIGHUP, 7),
    )  # fmt: skip
    assert ended.code == 0, ended
    runs.assert_same_run(tmp_path / "run", reference.baseline)
