"""The lock of a run directory: two processes never share one.

The lock is a directory ``lock/`` with one file, ``owner.json``, that says who holds it; that file's
modification time is the heartbeat. The directory is prepared under a staging name and renamed into place:
a rename onto a non-empty directory fails, so exactly one contender wins and a lock without an owner never
exists, whenever a process is killed.

A holder known to live on this machine is never displaced, however old its heartbeat: a process that was
stopped, a suspended machine and a clock that was set all make one look old. Where that cannot be told
(another host, another container) a heartbeat older than 120 s is given up for dead, which may be wrong. So
a holder asks :meth:`RunLock.check` before it writes or removes anything that another one would miss.
"""

import contextlib
import errno
import json
import os
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from app.run.atomic import storage_error
from app.run.errors import AppError, ConfigurationError, StorageError
from app.run.holder import Holder

HEARTBEAT_SECONDS = 30.0
STALE_SECONDS = 120.0
_OWNER = "owner.json"
#: goes on while the machine is suspended, where the system has such a clock
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Claim(NamedTuple):
    """A lock that somebody has taken, as it was found.

    Attributes:
        holder: who.
        age: seconds since the last heartbeat; negative where a clock was set back since.
        beat: the heartbeat's own time.
    """

    holder: Holder
    age: float
    beat: float

    @property
    def is_held(self) -> bool:
        """Whether the lock must be respected: the one rule that everything else follows."""
        is_alive = self.holder.is_alive
        return self.age <= STALE_SECONDS if is_alive is None else is_alive

    def refusal(self, place: str | os.PathLike[str], flag: str) -> str:
        """What somebody who wants the same place is told."""
        holder = self.holder
        is_ahead = self.age < -STALE_SECONDS
        seen = f"{-self.age:.0f} s ahead of the clock" if is_ahead else f"{max(self.age, 0):.0f} s ago"
        seen = f"last sign of life {seen}"
        remedy = f"wait for it to end, or use another {flag}"
        if holder.is_alive and abs(self.age) > STALE_SECONDS:
            seen += ", but alive: it is stopped, or a clock was set"
            remedy = f"continue it (kill -CONT {holder.pid}) or end it, or use another {flag}"
        elif is_ahead:
            remedy = f"set the clock, remove {Path(place) / 'lock'} if it has ended, or use another {flag}"
        since = holder.since or "?"
        return f"{place} is in use by process {holder.pid} on host {holder.host} since {since} ({seen}); {remedy}"


def holder(directory: str | os.PathLike[str], now: float | None = None) -> Claim | None:
    """Who holds a run directory's lock; None when it is free.

    A damaged owner file still counts as held, by host ``"?"`` and process 0, until the heartbeat is stale.

    Args:
        directory: the run directory.
        now: the time that the heartbeat is compared with; by default this machine's.
    """
    path = Path(directory) / "lock" / _OWNER
    try:
        beat = path.stat().st_mtime
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        fields = None
    return Claim(Holder.from_fields(fields), (time.time() if now is None else now) - beat, beat)


def is_held(directory: str | os.PathLike[str]) -> bool:
    """Whether somebody who is, as far as can be told, alive holds the run directory's lock."""
    try:
        found = holder(directory)
    except OSError:  # there is a lock, and it cannot be read
        return True
    return found is not None and found.is_held


@contextlib.contextmanager
def _guard(directory: Path, flag: str, patience_seconds: float = 5.0) -> Iterator[None]:
    """Lets contenders judge and replace a lock one after the other.

    Without it, one that has just judged a lock stale could move away the fresh lock of another that judged
    and replaced it a moment earlier. The kernel's lock on the run directory itself leaves no file behind
    and ends with the process. File systems that do not support it go unguarded; what was moved away is
    then looked at again, and put back where it is not what was judged.
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

    A requeued batch job that finds its own former self on another host waits until that one's heartbeat has
    stood still for 120 s instead of giving up, unless the heartbeat goes on.

    The heartbeat is a daemon thread: it neither keeps the process alive nor exists in forked children, and
    children cannot release the lock of their parent.

    Args:
        directory: an existing run directory.
        flag: option that names another one, for the message to whoever finds it taken.
        witness: a file that every holder replaces when it begins its work; None where there is none.

    Attributes:
        lost: whether somebody else was found to have taken the lock over.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        flag: str = "--run_dir",
        witness: str | os.PathLike[str] | None = None,
    ):
        self.directory = Path(directory)
        self.flag = flag
        self.witness = witness
        self.path = self.directory / "lock"
        self.lost = False
        self._owner: Holder | None = None
        self._loss = ""
        self._checked_at = 0.0  # when it was last seen to be ours
        self._seen: tuple[int, ...] | None = None  # the witness at that time
        self._stop = threading.Event()
        self._turn = threading.RLock()  # the heartbeat looks too, and must not take again what is given back

    @property
    def is_ours(self) -> bool:
        """Whether :meth:`check` passes."""
        try:
            self.check()
        except AppError:
            return False
        return True

    def acquire(self) -> None:
        """Takes the lock.

        Raises:
            ConfigurationError: when somebody else holds it; host, process and time are named.
            StorageError: when the directory cannot be written.
        """
        if self._owner is not None and self.is_ours:
            return
        owner = Holder.this_process(secrets.token_hex(8))
        watched: float | None = None  # the heartbeat of our former self
        n_unexplained, waits_until, still = 0, 0.0, None
        while not self._try(owner, still):
            found = holder(self.directory)
            if found is None:  # released this moment, or something else stands in the lock's place
                n_unexplained += 1
                if n_unexplained > 50:
                    raise ConfigurationError(f"{self.path} is in the way and is no lock; remove it")
                time.sleep(0.01)
                continue
            other = found.holder
            is_former_self = (
                other.job_id is not None and other.job_id == owner.job_id and other.is_alive is None
            )
            if not is_former_self or watched not in (None, found.beat):
                raise ConfigurationError(found.refusal(self.directory, self.flag))
            if watched is None:
                watched, waits_until = found.beat, time.monotonic() + STALE_SECONDS
                print(
                    f"{self.directory} was held by this job on host {other.host} {max(found.age, 0):.0f} s ago;"
                    f" waiting for that to be {STALE_SECONDS:.0f} s",
                    file=sys.stderr,
                )
            time.sleep(1.0)
            # Whatever the clocks say: one that is watched for as long and does not move has stopped.
            still = watched if time.monotonic() > waits_until else None
        self._owner, self.lost = owner, False
        self._stop = threading.Event()
        threading.Thread(target=self._keep_alive, args=(self._stop,), name="run lock", daemon=True).start()

    def check(self, trusted_seconds: float = 0.0) -> None:
        """Reads once more who holds the lock, before something is done that another holder would suffer from.

        A lock that somebody removed by hand is taken again if it is free and the witness shows that nobody
        else has begun since: another process may have come and gone.

        Args:
            trusted_seconds: an answer up to this old will do, and so will none where there is none to be
                had; for what is done often and can be undone.

        Raises:
            StorageError: the lock is no longer ours, or cannot be read.
        """
        # A step that trusts does not wait for a heartbeat that waits for the file system.
        if not self._turn.acquire(blocking=not trusted_seconds):
            return
        try:
            owner = self._owner
            if owner is None or owner.pid != os.getpid():
                raise StorageError(f"{self.directory} is not held by this process")
            if not self.lost and time.clock_gettime(_CLOCK) - self._checked_at > trusted_seconds:
                try:
                    self._look(owner)
                except StorageError:
                    if not trusted_seconds:
                        raise
            if self.lost:
                raise StorageError(self._loss)
        finally:
            self._turn.release()

    def release(self) -> None:
        """Gives the lock back; does nothing in a forked child, twice, or after somebody took it over."""
        if self._owner is None or self._owner.pid != os.getpid():
            return
        with self._turn:
            owner, self._owner = self._owner, None
            self._stop.set()
            with contextlib.suppress(OSError, ConfigurationError), _guard(self.directory, self.flag):
                found = holder(self.directory)
                if found is not None and found.holder.token == owner.token:
                    self._set_aside(owner.token)

    def __enter__(self) -> "RunLock":
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _look(self, owner: Holder) -> None:
        try:
            found = holder(self.directory)
            if found is None and self._seen is not None and self._seen == self._look_at_witness():
                with contextlib.suppress(ConfigurationError):  # somebody is taking it this moment
                    if self._try(owner):
                        return
                found = holder(self.directory)
            if found is not None and found.holder.token == owner.token:
                self._confirm()
                return
        except OSError as error:
            raise storage_error(error, self.path) from error
        self.lost = True
        by = "which has ended since"
        if found is not None:
            other = found.holder
            by = f"process {other.pid} on host {other.host} at {other.since or '?'}"
        self._loss = (
            f"{self.directory} was taken over by another process ({by}) while this one gave no sign of life, or"
            " its lock was removed; it ends and leaves the directory as it is"
        )

    def _confirm(self) -> None:
        self._checked_at, self._seen = time.clock_gettime(_CLOCK), self._look_at_witness()

    def _look_at_witness(self) -> tuple[int, ...] | None:
        """What changes when the witness is replaced; None where there is none."""
        if self.witness is None:
            return None
        try:
            found = os.stat(self.witness)
        except FileNotFoundError:
            return ()
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _staging(self) -> Path:
        return self.directory / f".lock-{secrets.token_hex(4)}.{os.getpid()}.tmp"

    def _set_aside(self, token: str) -> None:
        """Moves the lock with this token out of the way and removes it; of several contenders one succeeds."""
        aside = self._staging()
        os.rename(self.path, aside)
        moved = _token(aside / _OWNER)
        if moved is not None and moved != token:  # taken anew since it was judged: not ours to remove
            with contextlib.suppress(OSError):
                os.rename(aside, self.path)
                return
        shutil.rmtree(aside, ignore_errors=True)

    def _try(self, owner: Holder, still: float | None = None) -> bool:
        """Puts our lock in place if that is free or may be taken over.

        Args:
            owner: what to put there.
            still: a heartbeat that was watched and has stood still, whatever its age.
        """
        staging = self._staging()
        try:
            staging.mkdir()
            try:
                (staging / _OWNER).write_text(json.dumps(asdict(owner)) + "\n")
                with _guard(self.directory, self.flag):
                    # Both times come from the file system's clock, so that hosts need not agree.
                    found = holder(self.directory, (staging / _OWNER).stat().st_mtime)
                    if found is not None:
                        if found.is_held and found.beat != still:
                            return False
                        self._set_aside(found.holder.token)
                    os.rename(staging, self.path)
                    taken = holder(self.directory)
                    if taken is None or taken.holder.token != owner.token:
                        return False
                    self._confirm()
                    return True
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT) and self.directory.is_dir():
                return False
            raise storage_error(error, self.path) from error

    def _keep_alive(self, stop: threading.Event) -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            # A file system that is full or out of reach for a while must not end the heartbeat.
            with contextlib.suppress(OSError, AppError):
                self.check()
                os.utime(self.path / _OWNER)
            if self.lost:
                return


def _token(path: Path) -> str | None:
    """The token of an owner file; None where it cannot be read."""
    try:
        return Holder.from_fields(json.loads(path.read_bytes())).token
    except (OSError, ValueError, RecursionError):
        return None
