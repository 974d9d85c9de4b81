"""Whether a holder still lives, told from what it wrote down."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from app.run import holder
from app.run.holder import Holder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def of(process: subprocess.Popen[bytes]) -> Holder:
    """What that process would have written."""
    start_time = holder._start_time(process.pid)
    assert start_time is not None
    assert start_time > 0
    return replace(Holder.this_process("x"), pid=process.pid, start_time=start_time)


def test_alive_stopped_zombie_gone(sleeper: subprocess.Popen[bytes]) -> None:
    found = of(sleeper)
    assert found.is_alive is True
    sleeper.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, sleeper.pid, os.WSTOPPED | os.WNOWAIT)
    assert found.is_alive is True
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{sleeper.pid}/stat").exists()  # a zombie, whatever its parent is doing
    assert found.is_alive is False
    sleeper.wait()
    assert found.is_alive is False


@pytest.mark.parametrize(
    ("fields", "of_living", "of_dead"),
    [
        ({}, True, False),
        ({"start_time": 1}, False, False),
        ({"start_time": None}, None, False),
        ({"host": "renamed"}, True, None),
        ({"machine": "other boot or container"}, None, None),
        ({"machine": None}, True, False),
        ({"machine": None, "start_time": None}, None, False),
        ({"machine": None, "host": "elsewhere"}, None, None),
        ({"host": "elsewhere", "machine": "other boot"}, None, None),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_what_can_be_told(
    sleeper: subprocess.Popen[bytes], fields: dict[str, object], of_living: bool | None, of_dead: bool | None
) -> None:
    found = replace(of(sleeper), **fields)
    assert found.is_alive is of_living
    sleeper.kill()
    sleeper.wait()
    assert found.is_alive is of_dead


def test_a_process_that_another_user_hides(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``/proc`` mounted with ``hidepid``: it is there, but not whether it is the same one."""
    found = of(sleeper)
    monkeypatch.setattr(holder, "_start_time", lambda pid: None)
    assert found.is_alive is None

    def refuse(pid: int, signum: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert found.is_alive is None
    monkeypatch.undo()
    monkeypatch.setattr(os, "kill", refuse)
    assert found.is_alive is True


def test_without_a_readable_machine_nothing_is_told(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = of(sleeper)
    monkeypatch.setattr(holder, "_machine", lambda: None)
    assert found.is_alive is None
    assert replace(found, machine=None).is_alive is True
    sleeper.kill()
    sleeper.wait()
    assert found.is_alive is None
    assert replace(found, machine=None).is_alive is False


def test_a_container_with_our_host_name_cannot_be_looked_into() -> None:
    """The same kernel, host name and process id, in another process-id namespace."""
    code = "from dataclasses import asdict; from app.run.holder import Holder; print(asdict(Holder.this_process('x')))"
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"needs the right to make a namespace: {done.stderr.strip()}")
    found = Holder.from_fields(eval(done.stdout))  # printed by ourselves
    assert found.host == socket.gethostname()
    assert found.pid == 1  # there is one here too
    assert found.machine != Holder.this_process("x").machine
    assert found.is_alive is None


@pytest.mark.parametrize("name", [b"a) b (c", b"\xff) S 1 ("])
def test_command_with_any_name_in_the_process_table(tmp_path: Path, name: bytes) -> None:
    odd = os.path.join(os.fsencode(tmp_path), name)
    os.symlink("/bin/sleep", odd)
    process = subprocess.Popen([odd, "60"])
    try:
        assert of(process).is_alive is True
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "fields",
    [
        None,
        [],
        "host",
        {},
        {"host": "a"},
        {"host": 1, "pid": 1},
        {"host": "a", "pid": "1"},
        {"host": "a", "pid": 0},
        {"host": "a", "pid": -1},
        {"host": "a", "pid": 1, "start_time": "1"},
        {"host": "a", "pid": 1, "machine": 1},
        {"host": "a", "pid": 1, "token": None},
    ],
)
def test_what_is_no_holder_is_never_told_dead(fields: object) -> None:
    found = Holder.from_fields(fields)
    assert (found.host, found.pid, found.is_alive) == ("?", 0, None)


def test_a_holder_comes_back_as_it_was_and_unknown_fields_do_no_harm() -> None:
    written = Holder.this_process("x")
    assert Holder.from_fields(asdict(written) | {"of a later version": 1}) == written
    assert written.is_alive is True
