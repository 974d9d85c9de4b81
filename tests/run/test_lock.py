import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from app.run import lock
from app.run.directory import RunDirectory
from app.run.errors import ConfigurationError, StorageError
from app.run.holder import Holder
from app.run.lock import RunLock, holder, is_held
from app.run.status import true_state, write_status

ROOT = Path(__file__).parents[2]
STALE = lock.STALE_SECONDS


def plant(directory: Path, age_seconds: float = 0.0, **fields: Any) -> None:
    """Puts somebody else's lock into a directory."""
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": "2026-01-01T00:00:00Z", "token": "x"}
    (directory / "lock").mkdir()
    path = directory / "lock" / "owner.json"
    path.write_text(json.dumps(owner | fields))
    os.utime(path, (time.time() - age_seconds,) * 2)


def dead_process() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def leftovers(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def test_holder_is_named_and_release_frees(tmp_path: Path) -> None:
    with RunLock(tmp_path) as ours:
        assert ours.is_ours
        assert is_held(tmp_path)
        with pytest.raises(ConfigurationError) as caught:
            RunLock(tmp_path).acquire()
        message = str(caught.value)
        assert str(tmp_path) in message
        assert f"process {os.getpid()} on host {socket.gethostname()} since 20" in message
        assert leftovers(tmp_path) == ["lock"]
    assert not ours.is_ours
    assert leftovers(tmp_path) == []
    assert holder(tmp_path) is None
    ours.release()


def test_who_names_another_option_reads_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the lock is held, and where somebody is about to take it."""
    with RunLock(tmp_path), pytest.raises(ConfigurationError, match=r"or use another --out_dir$"):
        RunLock(tmp_path, "--out_dir").acquire()
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    monkeypatch.setattr(lock, "_guard", partial(lock._guard, patience_seconds=0.0))
    with pytest.raises(ConfigurationError, match=r"is being taken by .* or use another --out_dir$"):
        RunLock(tmp_path, "--out_dir").acquire()
    os.close(descriptor)
    assert leftovers(tmp_path) == []


def test_refusal_is_immediate_in_another_process(tmp_path: Path) -> None:
    code = "import sys, app.run.lock as lock; lock.RunLock(sys.argv[1]).acquire()"
    with RunLock(tmp_path):
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
        )
    assert done.returncode == 1
    assert f"in use by process {os.getpid()}" in done.stderr
    assert time.monotonic() - started < 1.0


def test_many_contenders_have_one_winner_at_a_time(tmp_path: Path) -> None:
    """Also when each finds the dead lock of the one before: nobody moves a fresh lock away."""
    code = """
import json, os, sys, time
from app.run.errors import ConfigurationError
from app.run.lock import RunLock
directory, end = sys.argv[1], time.monotonic() + 2.0
wins = 0
while time.monotonic() < end:
    lock = RunLock(directory)
    try:
        lock.acquire()
    except ConfigurationError:
        continue
    descriptor = os.open(directory + "/inside", os.O_CREAT | os.O_EXCL)  # fails when two are inside
    os.close(descriptor)
    time.sleep(0.001)
    os.unlink(directory + "/inside")
    wins += 1
    if wins % 3:
        lock.release()
    else:  # as if killed and its process id reused: the next one must take it over
        path = directory + "/lock/owner.json"
        with open(path + ".tmp", "w") as file:
            json.dump(json.load(open(path)) | {"start_time": 1}, file)
        os.replace(path + ".tmp", path)
print(wins)
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    results = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, results
    assert sum(int(out) for out, _ in results) > 50
    assert "inside" not in leftovers(tmp_path)
    assert [name for name in leftovers(tmp_path) if name != "lock"] == []


@pytest.mark.parametrize(
    ("fields", "age_seconds"),
    [
        ({"pid": "dead"}, 0),
        ({"pid": "dead", "job_id": "7"}, 0),
        ({"start_time": 1}, 0),
        ({"host": "elsewhere"}, 121),
        ({"host": "elsewhere", "job_id": "7"}, 121),
        ({"pid": "not a number"}, 121),
    ],
    ids=["dead", "dead job", "process id reused", "stale elsewhere", "requeued job", "damaged and stale"],
)
def test_taken_over(tmp_path: Path, fields: dict[str, Any], age_seconds: float) -> None:
    if fields.get("pid") == "dead":
        fields = fields | {"pid": dead_process()}
    plant(tmp_path, age_seconds, **fields)
    assert not is_held(tmp_path)
    with RunLock(tmp_path) as ours:
        found = holder(tmp_path)
        assert found is not None
        assert found[0].pid == os.getpid()
        assert found[1] < 5
        assert ours.is_ours
        assert leftovers(tmp_path) == ["lock"]


@pytest.mark.parametrize(
    ("fields", "age_seconds"),
    [
        ({}, 119),
        ({"host": "elsewhere", "pid": 1}, 100),
        ({"pid": 999_999_999, "machine": "another boot or container"}, 100),
        ({"pid": "not a number"}, 100),
        ({"pid": 10**30}, 0),
    ],
    ids=["alive", "fresh elsewhere", "same host name elsewhere", "damaged but fresh", "impossible process"],
)
def test_not_taken_over(tmp_path: Path, fields: dict[str, Any], age_seconds: float) -> None:
    plant(tmp_path, age_seconds, **fields)
    before = (tmp_path / "lock" / "owner.json").read_text()
    with pytest.raises(ConfigurationError, match="in use by process"):
        RunLock(tmp_path).acquire()
    assert (tmp_path / "lock" / "owner.json").read_text() == before
    assert leftovers(tmp_path) == ["lock"]


def test_requeued_job_waits_for_its_former_self(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    plant(tmp_path, 119, host="elsewhere", job_id="7")
    started = time.monotonic()
    with RunLock(tmp_path):
        assert 0.5 < time.monotonic() - started < 10


def test_second_step_of_one_job_does_not_wait_for_a_living_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    plant(tmp_path, 20, host="elsewhere", job_id="7")
    threading.Timer(0.5, os.utime, [tmp_path / "lock" / "owner.json"]).start()
    with pytest.raises(ConfigurationError, match="in use by process"):
        RunLock(tmp_path).acquire()


def test_heartbeat_goes_on_and_notices_a_take_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.02)
    ours = RunLock(tmp_path)
    ours.acquire()
    path = tmp_path / "lock" / "owner.json"
    os.utime(path, (1, 1))
    deadline = time.monotonic() + 5
    while path.stat().st_mtime < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.stat().st_mtime > time.time() - 10
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "theirs"}))
    while not ours.lost and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ours.lost
    assert not ours.is_ours
    ours.release()
    assert "theirs" in path.read_text()


def test_forked_child_cannot_release_and_has_no_heartbeat(tmp_path: Path) -> None:
    ours = RunLock(tmp_path)
    ours.acquire()
    child = os.fork()
    if child == 0:
        ours.release()
        os._exit(3 if ours.is_ours or threading.active_count() > 1 else 0)
    assert os.waitpid(child, 0)[1] == 0
    assert ours.is_ours
    assert is_held(tmp_path)
    ours.release()
    assert leftovers(tmp_path) == []


def test_lock_of_a_killed_process_is_taken_over_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time, app.run.lock as lock; lock.RunLock(sys.argv[1]).acquire();"
        " print(1, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    assert is_held(tmp_path)
    process.kill()
    # Not waited for: a zombie has ended, whatever its parent is doing.
    deadline = time.monotonic() + 5
    while is_held(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    with RunLock(tmp_path):
        pass
    process.wait()


def test_heartbeat_does_not_keep_the_process_alive(tmp_path: Path) -> None:
    code = "import sys, app.run.lock as l; l.RunLock(sys.argv[1]).acquire()"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True, timeout=10)
    assert not is_held(tmp_path)


def test_things_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="gone"):
        RunLock(tmp_path / "gone").acquire()
    (tmp_path / "lock").mkdir()
    with RunLock(tmp_path):  # an empty directory is nobody's lock
        pass
    (tmp_path / "lock").mkdir()
    (tmp_path / "lock" / "notes.txt").write_text("")
    with pytest.raises(ConfigurationError, match="is no lock; remove it"):
        RunLock(tmp_path).acquire()


@pytest.mark.parametrize("age_seconds", [7200, 121, 0, -121, -7200])
@pytest.mark.parametrize(
    ("fields", "is_old_enough"),
    [
        ({}, False),
        ({"host": "renamed since"}, False),
        ({"machine": "another boot or container"}, True),
        ({"host": "elsewhere", "machine": "another boot"}, True),
        ({"start_time": None}, True),
    ],
    ids=["known alive", "host renamed", "same host name elsewhere", "elsewhere", "cannot be told"],
)
def test_age_decides_only_where_life_cannot_be_told(
    tmp_path: Path, fields: dict[str, Any], is_old_enough: bool, age_seconds: float
) -> None:
    """A clock set back or ahead, a suspend: whoever judges the lock says the same."""
    plant(tmp_path, age_seconds, **asdict(Holder.this_process("theirs")) | fields)
    run = RunDirectory(tmp_path)
    write_status(run.status, "running", 3)
    is_free = is_old_enough and age_seconds > STALE
    assert is_held(tmp_path) is not is_free
    assert true_state(run) == ("killed" if is_free else "running")
    run.config.write_text("a: 1")
    run.checkpoints.mkdir()
    (run.checkpoints / "resume-000003.ckpt").touch()
    with pytest.raises(
        ConfigurationError, match="already holds a run" if is_free else "is in use by process"
    ):
        RunDirectory.open_new(tmp_path)
    if is_free:
        with RunLock(tmp_path) as ours:
            assert ours.is_ours
    else:
        with pytest.raises(ConfigurationError, match="is in use by process") as caught:
            RunLock(tmp_path).acquire()
        assert ("ahead of the clock" in str(caught.value)) == (age_seconds < -STALE)
        assert ("but alive" in str(caught.value)) == (abs(age_seconds) > STALE and not is_old_enough)
        assert holder(tmp_path)[0].token == "theirs"  # type: ignore[index]


def test_a_requeued_job_does_not_wait_for_a_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its former self's heartbeat lies an hour ahead: what counts is that it stands still."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.5)
    plant(tmp_path, -3600, host="elsewhere", job_id="7")
    started = time.monotonic()
    with RunLock(tmp_path):
        assert 0.5 < time.monotonic() - started < 10


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b"{", b'{"pid": 1}'])
def test_a_damaged_owner_file_is_held_until_it_is_old(tmp_path: Path, content: bytes) -> None:
    plant(tmp_path)
    path = tmp_path / "lock" / "owner.json"
    path.write_bytes(content)
    assert is_held(tmp_path)
    with pytest.raises(ConfigurationError, match=r"in use by process 0 on host \?"):
        RunLock(tmp_path).acquire()
    os.utime(path, (1, 1))
    assert not is_held(tmp_path)
    with RunLock(tmp_path):
        pass


def test_a_lock_that_cannot_be_read_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path)

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert is_held(tmp_path)
    with pytest.raises(StorageError, match="Permission denied"):
        RunLock(tmp_path).acquire()
