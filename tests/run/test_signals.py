import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from app.run.errors import ExitCode
from app.run.signals import (
    STOP_SIGNALS,
    StopRequests,
    ignore_in_worker,
    requested,
    starting_processes,
    waiting,
)
from tests.support.interpreter import WAIT, start


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
    for seconds in (0.0, 2.1):
        stop._watch._interrupted -= seconds
        os.kill(os.getpid(), signal.SIGINT)
        deadline = time.monotonic() + 5
        while time.monotonic() - stop._watch._interrupted > 1:  # heard, in the thread that watches
            assert time.monotonic() < deadline
            time.sleep(0.001)
    assert stop.requested == signal.SIGINT


def test_other_signals_are_none_of_ours(stop: StopRequests) -> None:
    assert not stop.note(signal.SIGCHLD)
    assert stop.requested is None


def test_a_wait_has_a_name_while_it_lasts(stop: StopRequests) -> None:
    with waiting("for the others"):
        assert stop.waiting_for == "for the others"
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == {*STOP_SIGNALS}
    assert stop.waiting_for == ""
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_signal_after_the_work_raises_nothing(stop: StopRequests) -> None:
    stop.conclude(0)
    os.kill(os.getpid(), signal.SIGTERM)
    handled(stop)


def handled(stop: StopRequests) -> None:
    deadline = time.monotonic() + 5
    while not stop.is_handled:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_second_signal_leaves_the_clearing_away_alone() -> None:
    process = start(
        "stop = StopRequests()\ntry:\n print('ready', flush=True)\n time.sleep(10)\nfinally:\n"
        " print('clearing', flush=True)\n for _ in range(10): time.sleep(0.02)\n print('tidy')"
    )
    process.terminate()
    assert process.stdout is not None
    assert process.stdout.readline() == "clearing\n"
    process.terminate()
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (143, "tidy\n", "")


def test_a_signal_to_a_child_is_none_to_its_parent(stop: StopRequests) -> None:
    stop.deferring = True
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(7)
    assert os.waitpid(child, 0)[1] >> 8 == 7
    time.sleep(0.05)
    assert stop.requested is None
    assert requested() is None


def test_nor_is_one_at_the_first_moment_of_the_child() -> None:
    process = start(
        "stop = StopRequests()\nstop.deferring = True\nprint('ready', flush=True)\n"
        "child = os.fork()\nif child == 0: os._exit(7)\n"
        "print(os.waitpid(child, 0)[1] >> 8); time.sleep(0.1); print(stop.requested)",
        first="os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))",
    )
    out, err = process.communicate(timeout=10)
    assert out == "7\nNone\n", err


def test_signals_held_back_by_a_launcher_are_heard() -> None:
    with starting_processes():
        process = start(f"stop = StopRequests()\n{WAIT}")
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
    process.terminate()
    process.communicate(timeout=10)
    assert process.returncode == 143


def test_processes_are_started_whole(stop: StopRequests) -> None:
    reached = []

    def begin() -> None:
        with starting_processes():
            os.kill(os.getpid(), signal.SIGTERM)
            handled(stop)
            reached.append("end")

    with pytest.raises(SystemExit) as leave:
        begin()
    assert leave.value.code == 143
    assert reached == ["end"]


def test_a_step_is_worth_finishing_from_the_first_sign_of_life_on(stop: StopRequests) -> None:
    assert not stop.deferring
    stop.tick()
    assert stop.deferring


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
    assert not requests._watch.is_alive()
    assert signal.set_wakeup_fd(-1) == -1


def test_a_command_leaves_the_signals_as_it_found_them() -> None:
    before = [signal.getsignal(signum) for signum in STOP_SIGNALS]
    with StopRequests.of_this_process() as requests, StopRequests.of_this_process() as again:
        assert again is requests
    assert [signal.getsignal(signum) for signum in STOP_SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


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
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # as its parent has left them
        ignore_in_worker()
        n_held_back = len(signal.pthread_sigmask(signal.SIG_BLOCK, []))
        os._exit(n_held_back + sum(signal.getsignal(signum) != signal.SIG_IGN for signum in STOP_SIGNALS))
    assert os.waitpid(child, 0)[1] == 0
