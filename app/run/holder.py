"""Who holds something, written down so that another process can tell whether that holder still lives."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


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

    @classmethod
    def this_process(cls, token: str) -> "Holder":
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            since=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            start_time=_start_time(os.getpid()),
            machine=_machine(),
            job_id=os.environ.get("SLURM_JOB_ID"),
            token=token,
        )

    @classmethod
    def from_fields(cls, fields: Any) -> "Holder":
        """What was read back; anything that is no holder becomes host ``"?"`` with process 0."""
        types: Mapping[str, Any] = cls.__annotations__
        if isinstance(fields, dict) and isinstance(fields.get("host"), str):
            known = {name: fields[name] for name in types if name in fields}
            pid = known.get("pid")
            if all(isinstance(value, types[name]) for name, value in known.items()) and pid and pid > 0:
                return cls(**known)
        return cls(host="?", pid=0, machine="?")

    @property
    def is_alive(self) -> bool | None:
        """Whether the holder's process lives; None where that cannot be told from here.

        A process id speaks of one boot of one machine and one process-id namespace of it: two containers
        may well share their host's name. A process is the same one if it also started at the same tick; a
        stopped one lives, a zombie does not. Where the holder could not say on which machine it ran, its
        host's name has to do.
        """
        here = _machine()
        has_our_name = self.host == socket.gethostname()
        is_here = has_our_name if self.machine is None else self.machine == here
        if not is_here:
            return None
        # A host's name may change under a living process; a death is believed only where both agree.
        if_gone = False if has_our_name else None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return if_gone
        except PermissionError:
            pass  # somebody else's, and there
        except OverflowError:
            return None
        now = _start_time(self.pid)
        if now is None or self.start_time is None:
            return None
        return True if now == self.start_time else if_gone


def _start_time(pid: int) -> int | None:
    """Field 22 of /proc/<pid>/stat, -1 of a process that has ended; None where it cannot be read."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
        # The second field is the command in brackets and may itself hold any byte but a zero.
        fields = text[text.rindex(b")") + 1 :].split()
        # A zombie has ended; only its parent has not looked yet.
        return -1 if fields[0] in b"ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def _machine() -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None
