"""A holder that may have been displaced asks before it writes, and ends without doing harm."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.run import lock
from app.run.errors import ConfigurationError, ExitCode, StorageError
from app.run.lock import RunLock, holder, is_held

ROOT = Path(__file__).parents[2]
#: takes the lock, says so, and then says at every line what a check finds
HOLDER = """
import sys
from app.run import holder, lock
from app.run.errors import AppError
lock.HEARTBEAT_SECONDS, lock.STALE_SECONDS = 0.05, 0.3
machine = sys.argv[2]
if machine:
    holder._machine = lambda: machine
ours = lock.RunLock(sys.argv[1], witness=sys.argv[1] + "/run.json")
ours.acquire()
print("taken", flush=True)
for line in sys.stdin:
    try:
        ours.check()
        print("ours", flush=True)
    except AppError as error:
        print(int(error.exit_code), error, flush=True)
ours.release()
"""


class Other:
    """Another process that holds the lock."""

    def __init__(self, directory: Path, machine: str):
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(directory), machine],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.said() == "taken"

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def check(self) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.said()

    def stop(self, until_older_than: float) -> None:
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)
        time.sleep(until_older_than)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def other(directory: Path, machine: str = "") -> Iterator[Other]:
    made = Other(directory, machine)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()


@pytest.fixture(autouse=True)
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.3)
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 60.0)


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[RunLock]:
    made = RunLock(tmp_path, witness=tmp_path / "run.json")
    made.acquire()
    yield made
    made.release()


def take_over(directory: Path) -> None:
    """What a process on another host does that gives our heartbeat up for dead."""
    shutil.rmtree(directory / "lock", ignore_errors=True)
    (directory / "lock").mkdir()
    fields = {"host": "elsewhere", "pid": 7, "since": "2026-01-01T00:00:00Z", "token": "theirs"}
    (directory / "lock" / "owner.json").write_text(json.dumps(fields))


def set_age(directory: Path, seconds: float) -> None:
    os.utime(directory / "lock" / "owner.json", (time.time() - seconds,) * 2)


def test_a_stopped_holder_of_this_machine_keeps_its_lock(tmp_path: Path) -> None:
    with other(tmp_path) as stopped:
        stopped.stop(until_older_than=0.5)
        for hours in (0, 1, -1):  # the clock is set ahead, or back
            set_age(tmp_path, hours * 3600 + 0.5)
            assert is_held(tmp_path)
            with pytest.raises(
                ConfigurationError, match=f"in use by process {stopped.process.pid}"
            ) as caught:
                RunLock(tmp_path).acquire()
            assert (
                f"but alive: it is stopped, or a clock was set); continue it (kill -CONT {stopped.process.pid})"
                in str(caught.value)
            )
        stopped.go_on()
        assert stopped.check() == "ours"


def test_a_stopped_holder_elsewhere_is_displaced_and_ends(tmp_path: Path) -> None:
    with other(tmp_path, machine="another boot") as displaced:
        assert displaced.check() == "ours"
        displaced.stop(until_older_than=0.5)
        assert not is_held(tmp_path)
        with RunLock(tmp_path) as ours:
            displaced.go_on()
            said = displaced.check()
            assert said.startswith(f"{int(ExitCode.STORAGE)} {tmp_path} was taken over by another process")
            assert f"(process {os.getpid()} on host" in said
            assert ours.is_ours
            assert displaced.process.stdin is not None
            displaced.process.stdin.close()  # it gives back what it no longer has
            assert displaced.process.wait() == 0
            assert ours.is_ours
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("is_removed_by_hand", [False, True])
def test_one_that_was_displaced_by_a_process_that_has_ended_since(
    tmp_path: Path, ours: RunLock, is_removed_by_hand: bool
) -> None:
    """The lock is free again, but another history is there: it is not taken again."""
    if is_removed_by_hand:
        shutil.rmtree(tmp_path / "lock")
    else:
        take_over(tmp_path)
        set_age(tmp_path, 60)
    with RunLock(tmp_path):
        (tmp_path / "run.json").write_text("its launch")
    with pytest.raises(StorageError, match=r"taken over by another process \(which has ended since\)"):
        ours.check()
    assert os.listdir(tmp_path) == ["run.json"]


def test_without_a_witness_a_missing_lock_is_lost(tmp_path: Path) -> None:
    ours = RunLock(tmp_path)
    ours.acquire()
    shutil.rmtree(tmp_path / "lock")
    assert not ours.is_ours
    assert os.listdir(tmp_path) == []


def test_the_file_is_asked_and_not_memory(tmp_path: Path, ours: RunLock) -> None:
    ours.check()
    take_over(tmp_path)
    assert not ours.lost
    with pytest.raises(StorageError, match=r"by another process \(process 7 on host elsewhere at 2026"):
        ours.check()
    assert ours.lost
    assert not ours.is_ours
    shutil.rmtree(tmp_path / "lock")
    with pytest.raises(StorageError, match="process 7"):  # for good
        ours.check()
    assert not (tmp_path / "lock").exists()


def test_a_lock_that_was_removed_by_hand_is_taken_again(tmp_path: Path, ours: RunLock) -> None:
    before = (tmp_path / "lock" / "owner.json").read_text()
    shutil.rmtree(tmp_path / "lock")
    ours.check()
    assert (tmp_path / "lock" / "owner.json").read_text() == before
    assert is_held(tmp_path)
    ours.release()
    assert os.listdir(tmp_path) == []


def test_the_heartbeat_takes_it_again_too_but_not_after_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.005)
    for _ in range(20):
        with RunLock(tmp_path, witness=tmp_path / "run.json"):
            shutil.rmtree(tmp_path / "lock")
            deadline = time.monotonic() + 5
            while not is_held(tmp_path) and time.monotonic() < deadline:
                time.sleep(0.001)
            assert is_held(tmp_path)
        assert holder(tmp_path) is None
    time.sleep(0.05)
    assert os.listdir(tmp_path) == []


def test_a_lock_that_is_given_back_is_not_taken_again_meanwhile(
    tmp_path: Path, ours: RunLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The heartbeat has just found it missing."""
    shutil.rmtree(tmp_path / "lock")
    look, looked, go_on = lock.holder, threading.Event(), threading.Event()

    def look_and_wait(*args: Any) -> Any:
        found = look(*args)
        if threading.current_thread().name == "heartbeat" and not looked.is_set():
            looked.set()
            go_on.wait(5)
        return found

    monkeypatch.setattr(lock, "holder", look_and_wait)
    heartbeat = threading.Thread(target=lambda: ours.is_ours, name="heartbeat")
    release = threading.Thread(target=ours.release)
    heartbeat.start()
    assert looked.wait(5)
    release.start()
    release.join(0.1)
    go_on.set()
    heartbeat.join()
    release.join()
    assert os.listdir(tmp_path) == []


def test_a_removed_lock_that_somebody_else_has_taken(tmp_path: Path, ours: RunLock) -> None:
    shutil.rmtree(tmp_path / "lock")
    with RunLock(tmp_path) as theirs:
        assert not ours.is_ours
        assert theirs.is_ours
    assert not ours.is_ours


def test_a_run_directory_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    ours = RunLock(tmp_path / "run", witness=tmp_path / "run" / "run.json")
    ours.acquire()
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(StorageError, match=r"cannot write .*run/lock: No such file"):
        ours.check()
    ours.release()


def test_an_answer_that_is_young_enough_will_do(tmp_path: Path, ours: RunLock) -> None:
    ours.check()
    take_over(tmp_path)
    ours.check(trusted_seconds=60)
    ours._checked_at -= 61  # as after a suspend
    with pytest.raises(StorageError, match="taken over"):
        ours.check(trusted_seconds=60)


def test_a_step_does_not_wait_for_a_heartbeat_that_waits(ours: RunLock) -> None:
    """The file system hangs; training goes on until it needs it itself."""
    held, go_on = threading.Event(), threading.Event()

    def hang() -> None:
        with ours._turn:
            held.set()
            go_on.wait(5)

    heartbeat = threading.Thread(target=hang)
    heartbeat.start()
    assert held.wait(5)
    ours._checked_at -= 61
    ours.check(trusted_seconds=60)
    assert not go_on.is_set()
    go_on.set()
    heartbeat.join()


class Failing:
    """A file system that is out of reach for so many calls."""

    def __init__(self, function: Any, code: int, n_calls: int):
        self.function, self.code, self.n_left = function, code, n_calls
        self.recovered = threading.Event()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.n_left:
            self.n_left -= 1
            raise OSError(self.code, os.strerror(self.code))
        self.recovered.set()
        return self.function(*args, **kwargs)


def test_what_cannot_be_read_is_not_ours_to_overwrite(
    tmp_path: Path, ours: RunLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "holder", Failing(holder, errno.EIO, 2))
    with pytest.raises(StorageError, match="Input/output error"):
        ours.check()
    ours._checked_at -= 61
    ours.check(trusted_seconds=60)  # what can be undone goes on
    assert not ours.lost
    ours.check()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("owner", ["lock.holder", "os.utime"])
def test_the_heartbeat_survives_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, owner: str
) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.005)
    name = owner.split(".")[1]
    module: Any = lock if owner.startswith("lock") else os
    ours = RunLock(tmp_path)
    ours.acquire()
    failing = Failing(getattr(module, name), code, 5)
    monkeypatch.setattr(module, name, failing)
    assert failing.recovered.wait(10)
    monkeypatch.undo()
    assert any(thread.name == "run lock" and thread.is_alive() for thread in threading.enumerate())
    assert not ours.lost
    ours.release()


def test_where_the_kernel_cannot_guard_a_fresh_lock_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two contenders judge one abandoned lock; the slower one meets the lock of the faster one."""
    take_over(tmp_path)
    set_age(tmp_path, 60)
    slow, fast = RunLock(tmp_path), RunLock(tmp_path)
    judge = lock.holder
    judged = threading.Event()

    def judge_and_wait(*args: Any) -> Any:
        found = judge(*args)
        if threading.current_thread().name == "slow" and not judged.is_set():
            judged.set()
            done.wait(5)
        return found

    done = threading.Event()
    monkeypatch.setattr(lock, "holder", judge_and_wait)
    monkeypatch.setattr("fcntl.flock", Failing(None, errno.EBADF, 1 << 30))
    refused: list[BaseException] = []

    def contend() -> None:
        try:
            slow.acquire()
        except ConfigurationError as error:
            refused.append(error)

    thread = threading.Thread(target=contend, name="slow")
    thread.start()
    assert judged.wait(5)
    fast.acquire()
    done.set()
    thread.join()
    assert refused
    assert fast.is_ours
    assert os.listdir(tmp_path) == ["lock"]
    fast.release()
