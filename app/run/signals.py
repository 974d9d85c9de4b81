"""Requests to stop: noted at any moment, honoured at the end of a step, enforced where nobody comes to honour them."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType

from app.run.errors import ExitCode
from app.run.watch import EndWatch, Patience

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)


def exit_code_of(signum: int) -> ExitCode:
    """What a process that a signal stopped ends with: 130 after SIGINT, 143 after the others."""
    return ExitCode.INTERRUPTED if signum == signal.SIGINT else ExitCode.TERMINATED


class StopRequests:
    """Handlers of SIGTERM, SIGUSR1, SIGHUP and SIGINT, in place from construction on (main thread only).

    While :attr:`deferring` is False nothing is worth finishing, and a signal ends the process at once by
    ``SystemExit`` with its exit code, so that ``finally`` blocks run. While it is True the first signal is only
    noted; the training loop looks at :attr:`requested`, and says with :meth:`tick` that it is at work. A second
    SIGINT within 2 s leaves at once.

    Python runs these handlers between two bytecodes of the main thread: never, while that thread waits in C++ for other
    ranks, for a collective, for a compiler. :class:`app.run.watch.EndWatch` hears of every signal at once and ends the
    process when the main thread does not.

    A SIGHUP that the process was started to ignore (``nohup``) stays ignored.

    Attributes:
        deferring: whether what the process does is worth finishing.
        requested: the first signal, whether or not the main thread has come to handle it.
        is_handled: whether it has.
        at_leaving: told the exit code and the reason when the process is ended from outside the main thread.
        waiting_for: what the main thread waits for, where it has said so.
        final_code: exit code of a process whose work is over; a signal does not change it any more.
    """

    def __init__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("signal handlers can be set in the main thread only")
        self.deferring = False
        self.requested: signal.Signals | None = None
        self.is_handled = False
        self.at_leaving: Callable[[ExitCode, str], object] = lambda code, reason: None
        self.waiting_for = ""
        self.final_code: int | None = None
        self.patience = Patience()
        self._process = os.getpid()
        self._n_holds = 0
        self._before = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
        self._wakes_before = signal.set_wakeup_fd(-1)
        self._watch = EndWatch(self)
        self.reinstall()
        global _installed
        self._outer, _installed = _installed, self
        # A launcher holds them back until they are heard, see starting_processes.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        self._watch.start()

    @classmethod
    @contextmanager
    def of_this_process(cls) -> Iterator["StopRequests"]:
        """Those that the command line has installed; where it has not, new ones for the time of a ``with`` block."""
        if _installed is not None:
            yield _installed
            return
        made = cls()
        try:
            yield made
        finally:
            made.restore()

    @property
    def exit_code(self) -> ExitCode:
        """Exit code for the noted signal; 0 when there is none."""
        return ExitCode.DONE if self.requested is None else exit_code_of(self.requested)

    def reinstall(self) -> None:
        """Sets the handlers again, after somebody else's have replaced them."""
        signal.set_wakeup_fd(self._watch.pipe, warn_on_full_buffer=False)
        for signum in STOP_SIGNALS:
            if signum == signal.SIGHUP and self._before[signum] == signal.SIG_IGN:
                continue
            signal.signal(signum, self._handle)

    def restore(self) -> None:
        """Puts back the handlers that were there before."""
        global _installed
        _installed = self._outer
        signal.set_wakeup_fd(self._wakes_before)
        for signum, handler in self._before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        self._watch.close()

    def tick(self) -> None:
        """The main thread is at work, from now on on something that is worth finishing."""
        self.deferring = True
        self.patience.tick()

    def conclude(self, code: int) -> None:
        """The work is over and its outcome stands; only coming to an end may still take too long."""
        self.final_code = code
        self.patience.restart()

    @contextmanager
    def saving(self) -> Iterator[None]:
        """A checkpoint that is being written is waited for."""
        self.patience.begin_save()
        try:
            yield
        finally:
            self.patience.end_save()
            self._watch.wake()

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Names what the main thread is about to wait for in C++."""
        self.waiting_for = what
        # Another thread takes the signals: an interrupted wait complains on the screen and starts again.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self.waiting_for = ""

    @contextmanager
    def held(self) -> Iterator[None]:
        """A signal that comes meanwhile is obeyed afterwards."""
        was_handled = self.is_handled
        self._n_holds += 1
        try:
            yield
        finally:
            self._n_holds -= 1
        if self.is_handled and not was_handled:
            self._obey()

    def note(self, signum: int) -> bool:
        """Notes a signal, and tells whether it is one of ours."""
        if signum not in STOP_SIGNALS:
            return False
        if self.requested is None:
            self.requested = signal.Signals(signum)
        return True

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a child that was forked by the way
            if not self.deferring:
                os._exit(exit_code_of(signum))
            return
        self.note(signum)
        if not self.is_handled:  # a second one must not disturb what the first has set going
            self.is_handled = True
            self._obey()

    def _obey(self) -> None:
        if not self.deferring and not self._n_holds and self.final_code is None:
            sys.exit(int(self.exit_code))


_installed: StopRequests | None = None
_forking = threading.local()


def requested() -> signal.Signals | None:
    """The signal that this process was told to stop by."""
    return None if _installed is None else _installed.requested


def saving() -> AbstractContextManager[None]:
    """See :meth:`StopRequests.saving`."""
    return nullcontext() if _installed is None else _installed.saving()


def waiting(what: str) -> AbstractContextManager[None]:
    """See :meth:`StopRequests.waiting`; the text goes on after "waited"."""
    return nullcontext() if _installed is None else _installed.waiting(what)


@contextmanager
def starting_processes() -> Iterator[None]:
    """Processes started here get the stop signals once they have decided what to do about them.

    They begin with the signals blocked: one to the whole group waits for a loader worker to come to
    :func:`ignore_in_worker`, and for a rank to have handlers. Until then a worker would be killed by SIGTERM, whose
    inherited handler PyTorch replaces by its own, and a fresh interpreter would print where SIGINT met it.
    """
    _start_tracker()
    # Leaving with a process half started would make that one complain.
    with nullcontext() if _installed is None else _installed.held():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_tracker() -> None:
    """The helper of spawned processes lets the signals through when it is started; it must be there before."""
    import multiprocessing

    if multiprocessing.get_start_method(allow_none=True) not in (None, "fork"):
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()


def ignore_in_worker() -> None:
    """Makes a worker ignore the stop signals, also those that have waited since its start: its parent ends it."""
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _before_fork() -> None:
    if _installed is not None:
        _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def _after_fork_in_parent() -> None:
    if _installed is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _after_fork_in_child() -> None:
    """A signal to a child must not wake the thread that watches its parent: they share the pipe."""
    global _installed
    if _installed is not None:
        _installed = None
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)
