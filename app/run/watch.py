"""The thread that ends a process which was told to stop and does not come to it."""

import contextlib
import math
import os
import select
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from app.run.errors import AppError, ExitCode

#: for a step to be finished, or for everything to be tidied up
STOP_SECONDS = 8.0
#: for the main thread to come back to the interpreter while it does nothing that is worth finishing
ANSWER_SECONDS = 2.0
#: for a checkpoint to be written
SAVE_SECONDS = 600.0
#: between two SIGINT that leave at once
TWICE_SECONDS = 2.0
#: for the last words: a dead file system or a full pipe must not hold the process
FAREWELL_SECONDS = 1.0


class Patience:
    """How long a run is given to come to the end of a step.

    A step of a minute is as good as one of a millisecond: the limit is three times the longest time between two signs
    of life among the last 2,000, and at least :data:`STOP_SECONDS`, counted from the last one. A save has a limit of
    its own, :data:`SAVE_SECONDS`; what it interrupts leaves the checkpoint before it.
    """

    def __init__(self) -> None:
        self._intervals: deque[float] = deque(maxlen=2000)
        self._last: float | None = None
        self._saving_since: float | None = None

    def tick(self) -> None:
        """A sign of life; costs less than a microsecond."""
        now = time.monotonic()
        if self._last is not None:
            self._intervals.append(now - self._last)
        self._last = now

    def restart(self) -> None:
        """A sign of life before something that past intervals say nothing about."""
        self._intervals.clear()
        self._last = time.monotonic()

    def begin_save(self) -> None:
        """From here on the time is the disk's."""
        self._saving_since = time.monotonic()

    def end_save(self) -> None:
        """Back to work; what the save took is no measure of a step."""
        self._saving_since = None
        if self._last is not None:
            self._last = time.monotonic()

    def deadline(self, asked: float) -> float:
        """When a run that was told to stop at the moment ``asked`` is given up."""
        since, last = self._saving_since, self._last
        if since is not None:
            return max(asked, since) + SAVE_SECONDS
        begin = asked if last is None else max(asked, last)
        return begin + max(STOP_SECONDS, 3.0 * max(self._intervals, default=0.0))


class Requests(Protocol):
    """What the watch asks of the main thread's side, see :class:`app.run.signals.StopRequests`."""

    requested: signal.Signals | None
    deferring: bool
    is_handled: bool
    waiting_for: str
    final_code: int | None
    patience: Patience
    at_leaving: Callable[[ExitCode, str], object]

    @property
    def exit_code(self) -> ExitCode:
        """What the process ends with, after :attr:`requested`."""

    def note(self, signum: int) -> bool:
        """Notes a signal, and tells whether it is one to stop by."""


class EndWatch(threading.Thread):
    """Reads signals from a pipe that the system's handler writes to, and ends the process when its time is up.

    Without a signal it sleeps.

    Args:
        requests: what the main thread makes of them.

    Attributes:
        pipe: descriptor that the numbers of signals are written to.
    """

    def __init__(self, requests: Requests):
        super().__init__(daemon=True, name="end-watch")
        self.requests = requests
        self._read, self.pipe = os.pipe()
        os.set_blocking(self.pipe, False)  # its writer is a signal handler
        self._main = threading.get_ident()
        self._asked = math.inf
        self._interrupted = -math.inf
        self._is_closed = False

    def wake(self) -> None:
        """Makes it look again: the deadline may be another one."""
        with contextlib.suppress(BlockingIOError):
            os.write(self.pipe, b"\0")

    def close(self) -> None:
        self._is_closed = True
        self.wake()
        self.join()
        os.close(self.pipe)
        os.close(self._read)

    def run(self) -> None:
        """Waits for a signal, and once there was one for the deadline."""
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        while not self._is_closed:
            seconds = self._deadline() - time.monotonic()
            if poll.poll(None if seconds == math.inf else max(0.0, 1000.0 * seconds)):
                for number in os.read(self._read, 512):
                    self._hear(number)
            elif time.monotonic() >= self._deadline():
                self._leave(*self._overdue())

    def _hear(self, number: int) -> None:
        if not self.requests.note(number):
            return
        now = time.monotonic()
        self._asked = min(self._asked, now)
        if number == signal.SIGINT:
            if now - self._interrupted < TWICE_SECONDS:
                self.requests.requested = signal.SIGINT
                without = ", without a checkpoint" if self.requests.deferring else ""
                self._leave("SIGINT twice", f"interrupted twice: leaving at once{without}")
            self._interrupted = now

    def _deadline(self) -> float:
        requests = self.requests
        if self._asked == math.inf:
            return math.inf
        if requests.deferring or requests.final_code is not None:
            return requests.patience.deadline(self._asked)
        return self._asked + (STOP_SECONDS if requests.is_handled else ANSWER_SECONDS)

    def _overdue(self) -> tuple[str, str]:
        assert self.requests.requested is not None
        what = self.requests.waiting_for or f"in {self._place()}"
        reason = f"{self.requests.requested.name} while the process waited {what}"
        stands = "; nothing was saved after the last checkpoint" if self.requests.deferring else ""
        return reason, f"stopped by {reason}{stands}"

    def _place(self) -> str:
        frame = sys._current_frames().get(self._main)
        if frame is None:
            return "for its end"
        file = "/".join(Path(frame.f_code.co_filename).parts[-2:])
        return f"{frame.f_code.co_qualname} ({file}:{frame.f_lineno})"

    def _leave(self, reason: str, line: str) -> None:
        code = self.requests.final_code
        if code is None:
            code = int(self.requests.exit_code)
            last_words = threading.Thread(target=self._say, args=(reason, line), daemon=True)
            with contextlib.suppress(RuntimeError):  # no thread can be started any more
                last_words.start()
                last_words.join(FAREWELL_SECONDS)
        try:
            # Only now: when its peers vanish, the main thread has an error of its own to report.
            end_descendants()
        finally:
            os._exit(code)

    def _say(self, reason: str, line: str) -> None:
        with contextlib.suppress(OSError, AppError):
            self.requests.at_leaving(self.requests.exit_code, reason)
        with contextlib.suppress(OSError):
            # The descriptor and not the stream, whose lock the main thread may hold.
            os.write(2, f"\n{line}\n".encode())


def end_descendants() -> None:
    """Kills every process that this one has started, and theirs, where the system lists them (Linux).

    Elsewhere they find out by themselves that their parent is gone.
    """
    found, parents = [], [os.getpid()]
    while parents:
        for thread in Path("/proc").glob(f"{parents.pop()}/task/*"):
            with contextlib.suppress(OSError):  # it has just ended
                children = [int(word) for word in (thread / "children").read_text().split()]
                found += children
                parents += children
    for pid in found:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
