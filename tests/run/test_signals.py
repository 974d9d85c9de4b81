import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.run.errors import ExitCode
from app.run.signals import STOP_SIGNALS, StopRequests, ignore_in_worker

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Under ``nohup`` this process, and what it starts, would ignore SIGHUP, as it should: not in these tests."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def stop() -> Iterator[StopRequests]:
    requests = StopRequests()
    yield requests
    requests.restore()


def start(code: str, **kwargs: bool) -> "subprocess.Popen[str]":
    text = f"import os, signal, sys, time\nfrom app.run.signals import *\n{code}"
    process = subprocess.Popen(
        [sys.executable, "-c", text],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


WAIT = "print('ready', flush=True)\nfor _ in range(300): time.sleep(0.02)"


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_before_training_a_signal_ends_at_once_through_finally(signum: signal.Signals) -> None:
    process = start(
        f"stop = StopRequests()\ntry:\n {WAIT.replace(chr(10), chr(10) + ' ')}\nfinally: print('tidy')"
    )
    process.send_signal(signum)
    out, err = process.communicate(timeout=10)
    assert process.returncode == (130 if signum == signal.SIGINT else 143)
    assert out == "tidy\n"
    assert err == ""


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_while_deferring_a_signal_is_only_noted(stop: StopRequests, signum: signal.Signals) -> None:
    stop.deferring = True
    assert stop.exit_code == ExitCode.DONE
    os.kill(os.getpid(), signum)
    assert stop.requested == signum
    assert stop.exit_code == (ExitCode.INTERRUPTED if signum == signal.SIGINT else ExitCode.TERMINATED)


def test_first_signal_decides(stop: StopRequests) -> None:
    stop.deferring = True
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.requested == signal.SIGUSR1
    assert stop.exit_code == 143


def test_second_interrupt_leaves_at_once() -> None:
    process = start(f"stop = StopRequests()\nstop.deferring = True\n{WAIT}")
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, err = process.communicate(timeout=10)
    assert time.monotonic() - started < 1
    assert process.returncode == 130
    assert "interrupted twice" in err


def test_second_interrupt_after_two_seconds_is_a_first_one(stop: StopRequests) -> None:
    stop.deferring = True
    os.kill(os.getpid(), signal.SIGINT)
    stop._last_interrupt -= 2.1
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.requested == signal.SIGINT


def test_reinstall_and_restore() -> None:
    before = [signal.getsignal(signum) for signum in STOP_SIGNALS]
    requests = StopRequests()
    requests.deferring = True
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    requests.reinstall()
    os.kill(os.getpid(), signal.SIGTERM)
    assert requests.requested == signal.SIGTERM
    requests.restore()
    assert [signal.getsignal(signum) for signum in STOP_SIGNALS] == before


def test_hang_up_stays_ignored_under_nohup() -> None:
    process = start(f"signal.signal(signal.SIGHUP, signal.SIG_IGN)\nstop = StopRequests()\n{WAIT}")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert process.poll() is None
    process.terminate()
    process.communicate(timeout=10)
    assert process.returncode == 143


def test_group_wide_signal_leaves_workers_alone() -> None:
    """Both a worker that ignores the signals and one that has not come to it yet."""
    process = start(
        "stop = StopRequests()\nstop.deferring = True\nchildren = []\nready, tell = os.pipe()\n"
        "for is_late in (False, True):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        if not is_late: ignore_in_worker()\n"
        "        os.write(tell, b'x'); time.sleep(0.5); os._exit(7)\n"
        "    children.append(child)\n"
        "for _ in children: os.read(ready, 1)\n"
        "print('ready', flush=True)\n"
        "print([os.waitpid(child, 0)[1] >> 8 for child in children], stop.requested.name)",
        start_new_session=True,
    )
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=10)
    assert out == "[7, 7] SIGTERM\n", err


def test_child_forked_before_training_obeys(stop: StopRequests) -> None:
    child = os.fork()
    if child == 0:
        time.sleep(10)
        os._exit(0)
    time.sleep(0.05)
    os.kill(child, signal.SIGTERM)
    assert os.waitpid(child, 0)[1] >> 8 == 143
    assert stop.requested is None


def test_only_the_main_thread_may_install() -> None:
    caught: list[Exception] = []

    def install() -> None:
        try:
            StopRequests()
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=install)
    thread.start()
    thread.join()
    assert "main thread only" in str(caught[0])


def test_ignoring_covers_all_four() -> None:
    child = os.fork()
    if child == 0:
        ignore_in_worker()
        os._exit(sum(signal.getsignal(signum) != signal.SIG_IGN for signum in STOP_SIGNALS))
    assert os.waitpid(child, 0)[1] == 0
