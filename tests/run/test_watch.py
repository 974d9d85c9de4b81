"""A process that was told to stop ends, whatever its main thread waits for."""

import signal
import time
import timeit

import pytest

from app.run import watch
from tests.support.application import assert_gone, children
from tests.support.interpreter import STUCK, WAIT, start

LAST_WORDS = "stop.at_leaving = lambda code, reason: print(int(code), reason, flush=True)\n"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_main_thread_that_does_not_come_back_is_not_waited_for(signum: signal.Signals) -> None:
    process = start(
        f"import app.run.watch as watch\nwatch.ANSWER_SECONDS = 0.15\nstop = StopRequests()\n{LAST_WORDS}"
        "shell = subprocess.Popen(['sh', '-c', 'sleep 60 & echo; wait'], stdout=subprocess.PIPE)\n"
        f"shell.stdout.readline()\n{STUCK}"
    )
    started = children(process.pid)
    assert len(started) == 2
    process.send_signal(signum)
    began = time.monotonic()
    out, err = process.communicate(timeout=10)
    assert process.returncode == (130 if signum == signal.SIGINT else 143)
    assert 0.1 < time.monotonic() - began < 2
    where = f"{signum.name} while the process waited in <module> (<string>:"
    assert out.startswith(f"{process.returncode} {where}"), out
    assert err.startswith(f"\nstopped by {where}")
    assert_gone(started)


def test_by_default_it_is_given_two_seconds_and_eight_while_it_trains() -> None:
    assert (watch.ANSWER_SECONDS, watch.STOP_SECONDS) == (2.0, 8.0)
    assert watch.STOP_SECONDS + watch.FAREWELL_SECONDS < 10


def test_a_run_that_hangs_in_a_step_is_not_waited_for() -> None:
    process = start(
        "import app.run.watch as watch\nwatch.STOP_SECONDS = 0.3\nstop = StopRequests()\n"
        f"{LAST_WORDS}stop.tick(); stop.tick()\n{STUCK}"
    )
    began = time.monotonic()
    while process.poll() is None:  # it counts from the first
        assert time.monotonic() - began < 5
        process.terminate()
        time.sleep(0.05)
    assert time.monotonic() - began > 0.25
    _, err = process.communicate(timeout=10)
    assert process.returncode == 143
    assert "nothing was saved after the last checkpoint" in err


def test_what_swallows_the_end_is_given_as_long() -> None:
    process = start(
        "import app.run.watch as watch\nwatch.ANSWER_SECONDS, watch.STOP_SECONDS = 0.1, 0.3\nstop = StopRequests()\n"
        f"try:\n {WAIT.replace(chr(10), chr(10) + ' ')}\nexcept SystemExit: pass\n{STUCK}"
    )
    process.terminate()
    began = time.monotonic()
    process.communicate(timeout=10)
    assert 0.25 < time.monotonic() - began < 2
    assert process.returncode == 143


def test_two_interrupts_leave_a_process_that_never_comes_back() -> None:
    process = start(f"stop = StopRequests()\n{LAST_WORDS}stop.tick()\n{STUCK}")
    process.terminate()
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    out, err = process.communicate(timeout=10)
    assert time.monotonic() - began < 1
    assert process.returncode == 130
    assert out == "130 SIGINT twice\n"
    assert err == "\ninterrupted twice: leaving at once, without a checkpoint\n"


def test_last_words_that_block_are_cut_short() -> None:
    process = start(
        "import app.run.watch as watch\nwatch.ANSWER_SECONDS = watch.FAREWELL_SECONDS = 0.1\nstop = StopRequests()\n"
        f"stop.at_leaving = lambda code, reason: time.sleep(60)\n{STUCK}"
    )
    process.terminate()
    began = time.monotonic()
    process.communicate(timeout=10)
    assert process.returncode == 143
    assert time.monotonic() - began < 2


def test_steps_as_long_as_before_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])

    def after(seconds: float) -> None:
        now[0] += seconds
        patience.tick()

    patience = watch.Patience()
    assert patience.deadline(asked=now[0]) == 108.0
    patience.tick()
    after(1.0)
    assert patience.deadline(asked=90.0) == 101.0 + 8.0
    after(20.0)
    after(4.0)
    assert patience.deadline(asked=90.0) == 125.0 + 60.0  # from the last sign of life
    assert patience.deadline(asked=130.0) == 130.0 + 60.0  # or from the signal
    patience.begin_save()
    now[0] += 100.0
    assert patience.deadline(asked=130.0) == 130.0 + watch.SAVE_SECONDS
    patience.end_save()
    after(2.0)
    assert patience.deadline(asked=0.0) == 227.0 + 60.0  # the save was no step
    for _ in range(2000):
        after(1.0)
    assert patience.deadline(asked=0.0) == now[0] + 8.0  # and a step long ago says nothing
    after(20.0)
    patience.restart()
    assert patience.deadline(asked=0.0) == now[0] + 8.0


def test_a_sign_of_life_costs_less_than_a_microsecond() -> None:
    patience = watch.Patience()
    best = min(timeit.repeat(patience.tick, number=1000, repeat=20)) / 1000
    assert best < 1e-6


def test_the_end_of_a_save_is_noticed_at_once() -> None:
    # While it lasts the limit lies ten minutes ahead.
    process = start(
        "import app.run.watch as watch\nwatch.STOP_SECONDS = 0.2\nstop = StopRequests()\nstop.tick()\n"
        f"with stop.saving():\n print('ready', flush=True)\n for _ in range(20): time.sleep(0.02)\n{STUCK}"
    )
    process.terminate()
    began = time.monotonic()
    process.communicate(timeout=10)
    assert process.returncode == 143
    assert 0.4 < time.monotonic() - began < 3


def test_the_outcome_stands_once_the_work_is_over() -> None:
    process = start(
        "import app.run.watch as watch\nwatch.ANSWER_SECONDS, watch.STOP_SECONDS = 0.1, 0.3\nstop = StopRequests()\n"
        f"stop.conclude(7)\n{STUCK}"
    )
    process.terminate()
    began = time.monotonic()
    _, err = process.communicate(timeout=10)
    assert time.monotonic() - began > 0.25
    assert process.returncode == 7
    assert err == ""


def test_a_wait_with_a_name_is_not_interrupted_by_the_signal_itself() -> None:
    process = start(
        "import app.run.watch as watch\nfrom tests.support.stuck import empty, sem_wait\n"
        "watch.ANSWER_SECONDS = 0.3\nstop = StopRequests()\n"
        "with waiting('for the others'): sem_wait(empty('ready'))\nos._exit(9)"
    )
    process.terminate()
    _, err = process.communicate(timeout=10)
    assert process.returncode == 143
    assert err == "\nstopped by SIGTERM while the process waited for the others\n"
