"""The lock of a run directory: two processes never share one.

The lock is a directory ``lock/`` with one file, ``owner.json``, that says who holds it; that file's
modification time is the heartbeat. The directory is prepared under a staging name and renamed into place:
a rename onto a non-empty directory fails, so exactly one contender wins and a lock without an owner never
exists, whenever a process is killed.
"""

import contextlib
import errno
import json
import os
import secrets
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from app.run.atomic import storage_error
from app.run.errors import ConfigurationError

HEARTBEAT_SECONDS = 30.0
STALE_SECONDS = 120.0
_OWNER = "owner.json"


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
        host: host name.
        pid: process id on that host.
        since: UTC time at which the lock was taken.
        start_time: the process's start in clock ticks since boot; tells a reused process id; None where
            the system does not say.
        machine: boot and process-id namespace, without which a process id means nothing; None likewise.
        job_id: id of the batch job; None outside one.
        token: unique to this taking of the lock.
    """

    host: str
    pid: int
    since: str = ""
    start_time: int | None = None
    machine: str | None = None
    job_id: str | None = None
    token: str = ""

    @property
    def is_local(self) -> bool:
        """Whether this machine can tell if the holder's process is alive."""
        return self.host == socket.gethostname() and self.machine in (None, _machine())

    @property
    def is_dead(self) -> bool:
        """Whether the holder is a process of this machine that has ended; False where it cannot be told."""
        if not self.is_local:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except (PermissionError, OverflowError):
            return False
        now = _start_time(self.pid)
        return now is not None and self.start_time is not None and now != self.start_time


def _start_time(pid: int) -> int | None:
    """Field 22 of /proc/<pid>/stat; None where there is no such file."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        # The second field is the command in brackets and may itself hold spaces and brackets.
        fields = text[text.rindex(")") + 1 :].split()
        # A zombie has ended; only its parent has not looked yet.
        return -1 if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def _machine() -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def holder(directory: str | os.PathLike[str]) -> tuple[Holder, float] | None:
    """Who holds a run directory's lock, and the seconds since the last heartbeat; None when it is free.

    A damaged owner file still counts as held, by host ``"?"`` and process 0, until the heartbeat is stale.
    """
    path = Path(directory) / "lock" / _OWNER
    try:
        beat = path.stat().st_mtime
        text = path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fields = json.loads(text)
        found = Holder(**{name: fields[name] for name in Holder.__dataclass_fields__ if name in fields})
        if not isinstance(found.pid, int) or found.pid <= 0:
            raise ValueError(found.pid)
    except (ValueError, TypeError, KeyError):
        found = Holder(host="?", pid=0, machine="?")
    return found, time.time() - beat


def is_held(directory: str | os.PathLike[str]) -> bool:
    """Whether somebody who is, as far as can be told, alive holds the run directory's lock."""
    found = holder(directory)
    return found is not None and not found[0].is_dead and found[1] <= STALE_SECONDS


@contextlib.contextmanager
def _guard(directory: Path, flag: str, patience_seconds: float = 5.0) -> Iterator[None]:
    """Lets contenders judge and replace a lock one after the other.

    Without it, one that has just judged a lock stale could move away the fresh lock of another that judged
    and replaced it a moment earlier. The kernel's lock on the run directory itself leaves no file behind
    and ends with the process. File systems that do not support it go unguarded; the token is compared
    again after the rename in any case.
    """
    import fcntl

    descriptor = os.open(directory, os.O_RDONLY)
    try:
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    break
                if time.monotonic() > deadline:
                    raise ConfigurationError(
                        f"{directory} is being taken by another process; wait, or use another {flag}"
                    ) from None
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


class RunLock:
    """Exclusive use of a run directory, as a context manager or with :meth:`acquire` and :meth:`release`.

    A lock is taken over when its holder is a process of this machine that has ended (a reused process id is
    told by its start time), or when its heartbeat is older than 120 s. A requeued batch job that finds its
    own former self on another host waits for that instead of giving up, unless the heartbeat goes on.

    The heartbeat is a daemon thread: it neither keeps the process alive nor exists in forked children, and
    children cannot release the lock of their parent.

    Args:
        directory: an existing run directory.
        flag: option that names another one, for the message to whoever finds it taken.
    """

    def __init__(self, directory: str | os.PathLike[str], flag: str = "--run_dir"):
        self.directory = Path(directory)
        self.flag = flag
        self.path = self.directory / "lock"
        self.lost = False
        self._owner: Holder | None = None
        self._stop = threading.Event()

    @property
    def is_ours(self) -> bool:
        """Whether this process holds the lock and nobody has taken it over since."""
        return self._owner is not None and self._owner.pid == os.getpid() and not self.lost

    def acquire(self) -> None:
        """Takes the lock.

        Raises:
            ConfigurationError: when somebody else holds it; host, process and time are named.
            StorageError: when the directory cannot be written.
        """
        if self.is_ours:
            return
        owner = Holder(
            host=socket.gethostname(),
            pid=os.getpid(),
            since=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            start_time=_start_time(os.getpid()),
            machine=_machine(),
            job_id=os.environ.get("SLURM_JOB_ID"),
            token=secrets.token_hex(8),
        )
        waiting_since: float | None = None
        n_unexplained = 0
        while not self._try(owner):
            found = holder(self.directory)
            if found is None:  # released this moment, or something else stands in the lock's place
                n_unexplained += 1
                if n_unexplained > 50:
                    raise ConfigurationError(f"{self.path} is in the way and is no lock; remove it")
                time.sleep(0.01)
                continue
            other, age = found
            beat = time.time() - age
            is_former_self = other.job_id is not None and other.job_id == owner.job_id and not other.is_local
            if not is_former_self or (waiting_since is not None and beat > waiting_since + 1.0):
                raise ConfigurationError(self._refusal(other, age))
            if waiting_since is None:
                waiting_since = beat
                print(
                    f"{self.directory} was held by this job on host {other.host} {age:.0f} s ago;"
                    f" waiting for that to be {STALE_SECONDS:.0f} s",
                    file=sys.stderr,
                )
            time.sleep(1.0)
        self._owner = owner
        self.lost = False
        self._stop = threading.Event()
        threading.Thread(target=self._beat, args=(owner, self._stop), name="run lock", daemon=True).start()

    def release(self) -> None:
        """Gives the lock back; does nothing in a forked child, twice, or after somebody took it over."""
        owner, self._owner = self._owner, None
        if owner is None or owner.pid != os.getpid():
            return
        self._stop.set()
        with contextlib.suppress(OSError, ConfigurationError), _guard(self.directory, self.flag):
            found = holder(self.directory)
            if found is not None and found[0].token == owner.token:
                self._set_aside()

    def __enter__(self) -> "RunLock":
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _refusal(self, other: Holder, age: float) -> str:
        return (
            f"{self.directory} is in use by process {other.pid} on host {other.host}"
            f" since {other.since or '?'} (last sign of life {max(age, 0):.0f} s ago);"
            f" wait for it to end, or use another {self.flag}"
        )

    def _staging(self) -> Path:
        return self.directory / f".lock-{secrets.token_hex(4)}.{os.getpid()}.tmp"

    def _set_aside(self) -> Path:
        """Moves the present lock out of the way and removes it; of several contenders one succeeds."""
        aside = self._staging()
        os.rename(self.path, aside)
        shutil.rmtree(aside, ignore_errors=True)
        return aside

    def _try(self, owner: Holder) -> bool:
        staging = self._staging()
        try:
            staging.mkdir()
            try:
                (staging / _OWNER).write_text(json.dumps(asdict(owner)) + "\n")
                with _guard(self.directory, self.flag):
                    found = holder(self.directory)
                    if found is not None:
                        # Both times come from the file system's clock, so that hosts need not agree.
                        age = (staging / _OWNER).stat().st_mtime - (time.time() - found[1])
                        if not found[0].is_dead and age <= STALE_SECONDS:
                            return False
                        self._set_aside()
                    os.rename(staging, self.path)
                    taken = holder(self.directory)
                    return taken is not None and taken[0].token == owner.token
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT) and self.directory.is_dir():
                return False
            raise storage_error(error, self.path) from error

    def _beat(self, owner: Holder, stop: threading.Event) -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            found = holder(self.directory)
            if found is None or found[0].token != owner.token:
                self.lost = not stop.is_set()
                return
            with contextlib.suppress(OSError):
                os.utime(self.path / _OWNER)
