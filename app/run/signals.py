"""Requests to stop, noted at any moment and honoured at the end of a step."""

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from app.run.errors import ExitCode

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
_LEAVE_SECONDS = 2.0


def exit_code_of(signum: int) -> ExitCode:
    """What a process that a signal stopped ends with: 130 after SIGINT, 143 after the others."""
    return ExitCode.INTERRUPTED if signum == signal.SIGINT else ExitCode.TERMINATED


class StopRequests:
    """Handlers of SIGTERM, SIGUSR1, SIGHUP and SIGINT, in place from construction on (main thread only).

    While :attr:`deferring` is False nothing is worth finishing, and a signal ends the process at once by
    ``SystemExit`` with its exit code, so that ``finally`` blocks run. While it is True the first signal is
    only noted; the training loop looks at :attr:`requested`. A second SIGINT within 2 s leaves at once.

    A SIGHUP that the process was started to ignore (``nohup``) stays ignored. Children forked while
    deferring are loader workers: they ignore a signal that reaches them before :func:`ignore_in_worker` does.
    """

    def __init__(self) -> None:
        self.deferring = False
        self.requested: signal.Signals | None = None
        self._process = os.getpid()
        self._last_interrupt = -_LEAVE_SECONDS
        self._before: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("signal handlers can be set in the main thread only")
        for signum in STOP_SIGNALS:
            self._before[signum] = signal.getsignal(signum)
        self.reinstall()

    @property
    def exit_code(self) -> ExitCode:
        """Exit code for the noted signal; 0 when there is none."""
        return ExitCode.DONE if self.requested is None else exit_code_of(self.requested)

    def reinstall(self) -> None:
        """Sets the handlers again, after somebody else's have replaced them."""
        for signum in STOP_SIGNALS:
            if signum == signal.SIGHUP and self._before[signum] == signal.SIG_IGN:
                continue
            signal.signal(signum, self._handle)

    def restore(self) -> None:
        """Puts back the handlers that were there before."""
        for signum, handler in self._before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            if not self.deferring:
                os._exit(exit_code_of(signum))
            return
        if signum == signal.SIGINT:
            now = time.monotonic()
            if now - self._last_interrupt < _LEAVE_SECONDS:
                # The descriptor and not the stream, whose lock the interrupted code may hold.
                os.write(2, b"\ninterrupted twice: leaving at once, without a checkpoint\n")
                os._exit(ExitCode.INTERRUPTED)
            self._last_interrupt = now
        if self.requested is None:
            self.requested = signal.Signals(signum)
        if not self.deferring:
            sys.exit(int(exit_code_of(signum)))


def ignore_in_worker() -> None:
    """Makes a loader worker ignore the stop signals: its parent finishes the step and ends it."""
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
