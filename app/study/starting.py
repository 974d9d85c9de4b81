"""How the process of a run comes to be: a fresh one, or a copy of one that has the framework imported already."""

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from app.run.storage import writing
from app.study.jobs import Job

#: between two looks at a process that is waited for
POLL_SECONDS = 0.05


class Process(Protocol):
    """A process of a run; :class:`subprocess.Popen` is one."""

    def poll(self) -> int | None:
        """Its exit code, negative where a signal ended it; None where it runs."""

    def wait(self) -> int:
        """Its exit code, once it has ended."""

    def send_signal(self, sig: int) -> None:
        """Tells it something; nothing where it has ended."""


class Starter(Protocol):
    """Starts runs."""

    def start(self, job: Job, device: str | None) -> Process:
        """Starts one, on a GPU alone where one is named.

        Raises:
            StorageError: its log cannot be written.
        """

    def close(self) -> None:
        """No more runs are started."""


class Fresh:
    """Starts every run as a process of its own."""

    def start(self, job: Job, device: str | None) -> Process:
        """See :class:`Starter`."""
        with writing(job.log), Path(job.log).open("ab") as log:
            # A session of its own: Ctrl-C is the runner's, which passes it on once.
            return subprocess.Popen(
                job.process,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=job.environment(device),
                start_new_session=True,
            )

    def close(self) -> None:
        """Nothing is left open."""


class Warm:
    """Starts every run as a copy of one process that has imported the framework, see :mod:`app.warm`.

    Where that process is lost, or its imports turn out to forbid a copy, what it has started goes on, and all other
    runs are fresh processes.

    Args:
        threads: of each run; they are settled when the framework is imported.
        command: what is started to be copied.
    """

    def __init__(self, threads: int, command: Sequence[str] = (sys.executable, "-m", "app.warm")):
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=Job.limited(threads),
            start_new_session=True,
        )
        self._numbers = itertools.count()
        self._copies: dict[int, _Copy] = {}
        self._is_lost = False

    def start(self, job: Job, device: str | None) -> Process:
        """See :class:`Starter`."""
        with writing(job.log), Path(job.log).open("ab"):
            pass  # what cannot be written is better known here
        if self._is_lost:
            return Fresh().start(job, device)
        number = next(self._numbers)
        environment = {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
        self._copies[number] = _Copy(self, job, device)
        words = {"words": ["fit", *job.command], "log": str(job.log), "environment": environment}
        self._send({"start": number, **words})
        return self._copies[number]

    def look(self) -> None:
        """Brings all copies up to date."""
        asked = next(self._numbers)
        assert self._process.stdout is not None
        self._send({"ask": asked})
        for line in iter(self._process.stdout.readline, b""):
            answer = json.loads(line)
            if isinstance(answer, str):
                print(f"note     {answer}: each run imports it by itself", file=sys.stderr)
                break
            number, found = answer
            if number == asked:  # an earlier answer is one that nobody has waited for
                for key, (pid, code) in found.items():
                    self._copies[int(key)].pid, self._copies[int(key)].code = pid, code
                return
        self._is_lost = True

    def close(self) -> None:
        """See :class:`Starter`; what was started goes on."""
        self._is_lost = True
        self._process.kill()  # it may still be at its imports
        self._process.communicate()

    @property
    def is_lost(self) -> bool:
        """Whether nobody answers any more."""
        return self._is_lost

    def _send(self, order: dict[str, object]) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # the missing answer will tell
            self._process.stdin.write(json.dumps(order, allow_nan=False).encode() + b"\n")
            self._process.stdin.flush()


class _Copy:
    """A process that :class:`Warm` has started.

    Attributes:
        pid: None until it is known.
        code: as that of a :class:`Process`.
    """

    def __init__(self, warm: Warm, job: Job, device: str | None):
        self.warm, self.job, self.device = warm, job, device
        self.pid: int | None = None
        self.code: int | None = None
        self._instead: Process | None = None

    def poll(self) -> int | None:
        if self.code is None and not self.warm.is_lost:
            self.warm.look()
        if self.code is None and self.warm.is_lost:
            self.code = self._orphaned()
        return self.code

    def wait(self) -> int:
        while (code := self.poll()) is None:
            time.sleep(POLL_SECONDS)
        return code

    def send_signal(self, sig: int) -> None:
        if self.poll() is not None:
            return
        if self._instead is not None:
            self._instead.send_signal(sig)
        elif self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def _orphaned(self) -> int | None:
        """The code of a run whose parent is lost; 0 where nobody knows it: what it has left behind tells more."""
        if self.pid is None and self._instead is None:
            self._instead = Fresh().start(self.job, self.device)
        if self._instead is not None:
            return self._instead.poll()
        try:
            os.kill(self.pid or 0, 0)
        except ProcessLookupError:
            return 0
        return None


def starter(n_runs: int, threads: int, trusted: Sequence[str]) -> Starter:
    """How runs are started here.

    Args:
        n_runs: how many there are; a single one has nobody to share its imports with.
        threads: of each.
        trusted: import prefixes of the user's own, whose code may not bear being forked.
    """
    # Elsewhere a fork that is not followed by another program is not safe.
    return Warm(threads) if n_runs > 1 and not trusted and sys.platform == "linux" else Fresh()
