"""Application processes for tests: forked from a warm server, with their output, their end and their files."""

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from tests.support.descriptors import has_something

Result = TypeVar("Result")
REPOSITORY = Path(__file__).resolve().parents[2]


class Ended(str):
    """What a process left; as a text, all of it, so that a failed test shows it."""

    code: int
    out: str
    err: str

    def __new__(cls, code: int, out: str, err: str) -> "Ended":
        ended = super().__new__(cls, f"exit {code}\n--- stdout\n{out}\n--- stderr\n{err}")
        ended.code, ended.out, ended.err = code, out, err
        return ended


class Running:
    """A process under way."""

    def __init__(self, pid: int, connection: socket.socket, stdout: Path, stderr: Path):
        self.pid = pid
        self._connection = connection
        self._stdout, self._stderr = stdout, stderr
        self._code: int | None = None

    def kill(self, signum: int = signal.SIGKILL, group: bool = False) -> None:
        """Sends a signal to the process, or to everything it has started as well."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, signum)

    def wait(self, timeout: float = 120.0) -> Ended:
        """Waits for the end; a process that outlasts the time is killed and the test fails."""
        if self._code is None:
            self._connection.settimeout(timeout)
            try:
                text = self._connection.recv(64).decode()
            except TimeoutError:
                self.kill(group=True)
                raise AssertionError(f"still running after {timeout} s\n{self.output()}") from None
            self._code = int(text)
            self._connection.close()
        return self.output()

    @property
    def has_ended(self) -> bool:
        """Whether :meth:`wait` would return at once."""
        return self._code is not None or has_something(self._connection)

    def output(self) -> Ended:
        """What it has printed so far."""
        return Ended(
            -999 if self._code is None else self._code, self._stdout.read_text(), self._stderr.read_text()
        )

    def wait_for(self, text: str, timeout: float = 60.0) -> None:
        """Waits until it has printed this."""
        self.wait_until(lambda: text in self._stdout.read_text(), f"print {text!r}", timeout)

    def wait_until(self, condition: Any, what: str, timeout: float = 60.0) -> None:
        """Waits until a condition holds."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline or not alive(self.pid):
                raise AssertionError(f"did not {what}\n{self.output()}")
            time.sleep(0.005)


class Application:
    """Starts commands of the application."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._socket = str(folder / "socket")
        self._counter = itertools.count(1)
        self._pools: list[ThreadPoolExecutor] = []
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fork_server", self._socket],
            cwd=REPOSITORY,
            env=environment(),
        )
        deadline = time.monotonic() + 90
        while not Path(self._socket).exists():
            if self.server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the fork server did not start")
            time.sleep(0.05)
        self._owner = self._connect()
        self._owner.sendall(b'"owner"\n')

    def close(self) -> None:
        """Ends the server and all that it has started."""
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)
        self._owner.close()
        try:
            self.server.wait(10)
        except subprocess.TimeoutExpired:
            self.server.kill()

    def start(
        self,
        *arguments: Any,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        prelude: str = "",
        whole_ending: bool = False,
        warm_rank: bool = False,
    ) -> Running:
        """Starts one command.

        Args:
            arguments: words of the command line.
            cwd: its folder.
            env: variables beside the usual ones.
            prelude: Python source run in the process before the command, to cause a fault there.
            whole_ending: the samples and the picture of a finished run as shipped; otherwise one short sample.
            warm_rank: whether rank 1, if there is one, is forked like the command itself; otherwise the
                command starts it as it always does, which takes seconds.
        """
        number = next(self._counter)
        stdout = self.folder / f"{number}.out"
        stderr = self.folder / f"{number}.err"
        stdout.touch()
        stderr.touch()
        connection = self._connect()
        request = {
            "arguments": [str(word) for word in arguments],
            "cwd": str(cwd),
            "env": environment() | dict(env or {}),
            "stdout": str(stdout),
            "stderr": str(stderr),
            "prelude": prelude,
            "whole_ending": whole_ending,
            "warm_rank": warm_rank,
        }
        connection.sendall(json.dumps(request).encode() + b"\n")
        pid = b""
        while not pid.endswith(b"\n"):
            pid += connection.recv(1)
        return Running(int(pid), connection, stdout, stderr)

    def run(self, *arguments: Any, cwd: Path, timeout: float = 120.0, **options: Any) -> Ended:
        """Starts one command and waits for its end."""
        return self.start(*arguments, cwd=cwd, **options).wait(timeout)

    def fit(self, config: Path, run_dir: Path, *arguments: Any, **options: Any) -> Path:
        """Trains to the end in a new run directory, which is returned."""
        ended = self.run(
            "fit", "--config", config, "--run_dir", run_dir, *arguments, cwd=config.parent, **options
        )
        assert ended.code == 0, ended
        return run_dir

    def go_on(self, run_dir: Path, *arguments: Any, **options: Any) -> Ended:
        """Resumes a run and waits for its end."""
        return self.run(
            "fit", "--run_dir", run_dir, "--resume", "auto", *arguments, cwd=run_dir.parent, **options
        )

    def begin(self, jobs: Mapping[str, Callable[[], Result]], at_once: int = 2) -> dict[str, Future[Result]]:
        """Begins several jobs, so many side by side, each a call of one of the methods above or several.

        A test then waits for its own: it fails by what that one raised.
        """
        pool = ThreadPoolExecutor(at_once)
        self._pools.append(pool)
        return {name: pool.submit(job) for name, job in jobs.items()}

    def all(self, *jobs: Callable[[], Result]) -> list[Result]:
        """Runs several jobs side by side and returns their results."""
        begun = self.begin({str(number): job for number, job in enumerate(jobs)})
        return [future.result() for future in begun.values()]

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self._socket)
        return connection


def environment() -> dict[str, str]:
    """One thread: two on two busy cores slow tiny steps down several times."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("ARCHLAB_", "LOCAL_RANK"))
    }
    return kept | {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
    }


def real(arguments: Sequence[Any], cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen:
    """A real process of its own, for what a forked one cannot show: several ranks, start-up time."""
    return subprocess.Popen(
        [sys.executable, "-m", "app", *map(str, arguments)],
        cwd=cwd,
        env=environment() | dict(env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def assert_gone(pids: Iterable[int], seconds: float = 5.0) -> None:
    """Processes end within this time: one that was just killed is still there for a moment."""
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if alive(pid)]:
        assert time.monotonic() < deadline, f"still there after {seconds} s: {left}"
        time.sleep(0.02)


def connected_to(pid: int, port: int) -> bool:
    """Whether the process waits for an answer of that port."""
    rows = Path(f"/proc/{pid}/net/tcp").read_text() + Path(f"/proc/{pid}/net/tcp6").read_text()
    inodes = {row.split()[9] for row in rows.splitlines() if f":{port:04X} 01" in row}
    names = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}
    return any(f"socket:[{inode}]" in names for inode in inodes)


def children(pid: int) -> list[int]:
    """Processes that this one has started and that still run, with all of theirs."""
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for word in (thread / "children").read_text().split():
            found += [int(word), *children(int(word))] if alive(int(word)) else []
    return found
