"""Standard output and standard error, which may go away at any moment: a reader leaves, a disk is full, a line is cut.

To train, output is a courtesy: what cannot be printed is remembered for ``status.json``, and the run goes on. Every
other command ends by its output as other tools do: quietly with 141 where the reader left, with a message and 5 where
the text could not be put anywhere. Standard error is a courtesy to all of them.

Both are decided in one place, below the streams of Python: whatever prints (the progress bar, warnings, loggers, the
interpreter at its end) writes through them and sees no failure that is not meant for it.
"""

import contextlib
import errno
import io
import os
import re
import select
import sys
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

from app.run.errors import AppError, ExitCode

PATIENCE_SECONDS = (
    10.0  # a pager that shows another page is waited for; training is not held up by one left open
)
KEPT_LINES = 20
KEPT_CHARACTERS = 300
#: a pipe that takes anything at all takes so much at once
_CHUNK = select.PIPE_BUF
_TITLES = {1: "standard output", 2: "standard error"}
#: what moves a terminal's cursor or colours a text
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


class OutputLost(AppError):
    """Ends a command whose output can no longer be written.

    Args:
        title: of the stream.
        error: what the operating system says.
    """

    def __init__(self, title: str, error: OSError):
        super().__init__(f"{title}: {error.strerror}")
        is_gone = error.errno in (errno.EPIPE, errno.ECONNRESET)
        self.exit_code = ExitCode.READER_GONE if is_gone else ExitCode.STORAGE


class Descriptor(io.RawIOBase):
    """Standard output or standard error, at the level of the operating system; it takes everything that it is given.

    Args:
        number: 1 or 2.
        is_open: whether the process was started with it.

    Attributes:
        is_courtesy: whether nobody waits or ends for it: a failure is only remembered. Otherwise that of standard
            output is raised, once, in the main thread.
        failure: the first one.
    """

    def __init__(self, number: int, is_open: bool = True):
        self.name = f"<std{'out' if number == 1 else 'err'}>"
        self.title = _TITLES[number]
        self.is_courtesy = False
        self.failure: OSError | None = None
        self._number = number
        self._is_open = is_open
        self._is_told = False
        self._is_stalled = False
        self._ready = select.poll()
        self._ready.register(number, select.POLLOUT)
        self._n_lines = 0
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._rest = b""  # of a line whose end has not come yet

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """1 or 2."""
        return self._number

    def isatty(self) -> bool:
        """Whether a person may be looking."""
        return self._is_open and os.isatty(self._number)

    def write(self, data: Any) -> int:
        """Writes all of it, or remembers what could not be written.

        Raises:
            OutputLost: that failed and is no courtesy here.
        """
        content, n_done = bytes(data), 0
        try:
            if not self._is_open:
                raise OSError(errno.EBADF, "closed")
            while n_done < len(content):
                self._wait()
                with contextlib.suppress(BlockingIOError):  # somebody else has filled the pipe meanwhile
                    n_done += os.write(self._number, content[n_done : n_done + _CHUNK])
        except OSError as error:
            self._remember(content[n_done:])
            self.failure = self.failure or error
            is_main = threading.current_thread() is threading.main_thread()
            if self.ends_commands and not self._is_told and is_main:
                self._is_told = True
                raise OutputLost(self.title, error) from None
        return len(content)

    @property
    def ends_commands(self) -> bool:
        """Whether a command has failed whose text could not be written."""
        return self._number == 1 and not self.is_courtesy

    def unprinted(self) -> dict[str, Any] | None:
        """Reason, number of lines and the last of them; None where everything was printed."""
        if self.failure is None:
            return None
        rest = [line] if (line := _shown(self._rest)) else []
        return {
            "reason": self.failure.strerror,
            "lines": self._n_lines + len(rest),
            "last": [*self._lines, *rest][-KEPT_LINES:],
        }

    def _wait(self) -> None:
        """Until the descriptor takes something; a courtesy does not wait for ever, and not twice."""
        seconds = (0.0 if self._is_stalled else PATIENCE_SECONDS) if self.is_courtesy else None
        self._is_stalled = not self._ready.poll(None if seconds is None else 1000 * seconds)
        if self._is_stalled:
            raise TimeoutError(errno.ETIMEDOUT, f"not read for {PATIENCE_SECONDS:.0f} s")

    def _remember(self, data: bytes) -> None:
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[-KEPT_CHARACTERS:]
        self._n_lines += len(lines)
        self._lines.extend(_shown(line) for line in lines[-KEPT_LINES:])


def _shown(line: bytes) -> str:
    """A line as a terminal would show it: what a bar writes over itself is gone."""
    text = line.decode("utf-8", "replace").rstrip("\r").rpartition("\r")[2]
    return _CONTROL.sub("", text)[:KEPT_CHARACTERS]


#: the streams of ours that are in place
_in_place: list[tuple[io.TextIOWrapper, Descriptor]] = []


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Has streams of ours in place for the time of a ``with`` block, unless they are already."""
    if _in_place:
        yield
        return
    before = (sys.stdin, sys.stdout, sys.stderr)
    install()
    try:
        yield
    finally:
        make_courtesy()
        flush()
        sys.stdin, sys.stdout, sys.stderr = before
        _in_place.clear()


def install() -> None:
    """Puts streams of ours in the place of the interpreter's own.

    To be called before anything is opened: of a process that was started without one of its three descriptors, the
    next file would get that number, and be printed into. A stream that is neither missing nor the process's own, as
    in a notebook, stays.
    """
    was_open = [_opened(number) for number in range(3)]
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, closefd=False)
    for number, name in ((1, "stdout"), (2, "stderr")):
        old = getattr(sys, name)
        if old is not None and not _writes_to(old, number):
            continue
        descriptor = Descriptor(number, was_open[number] and old is not None)
        stream = _text(descriptor, old)
        _in_place.append((stream, descriptor))
        setattr(sys, name, stream)


def _writes_to(stream: Any, number: int) -> bool:
    with contextlib.suppress(OSError, ValueError):
        stream.flush()
    try:
        return isinstance(stream, io.TextIOWrapper) and stream.fileno() == number
    except ValueError:  # somebody has closed it
        return False


def _opened(number: int) -> bool:
    """Whether a descriptor was open; one that was not is now the null device, for child processes as well."""
    try:
        os.fstat(number)
    except OSError:
        null = os.open(
            os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY
        )  # the lowest free number is this one
        os.set_inheritable(null, True)
        return False
    return True


def _text(descriptor: Descriptor, like: io.TextIOWrapper | None) -> io.TextIOWrapper:
    """A text stream on the descriptor that behaves like another; any text can be written to it."""
    if like is None:
        return io.TextIOWrapper(io.BufferedWriter(descriptor), "utf-8", "backslashreplace")
    is_unbuffered = like.write_through
    return io.TextIOWrapper(
        descriptor if is_unbuffered else io.BufferedWriter(descriptor),
        encoding=like.encoding,
        errors="backslashreplace" if like.errors == "strict" else like.errors,
        line_buffering=like.line_buffering,
        write_through=is_unbuffered,
    )


def make_courtesy() -> None:
    """From here on nothing that this process prints is worth ending for."""
    for _, descriptor in _in_place:
        descriptor.is_courtesy = True


def flush() -> None:
    """Prints what still waits.

    Raises:
        OutputLost: output that is no courtesy was lost, now or earlier where that could not be told.
    """
    for stream, _ in _in_place:
        stream.flush()
    for _, descriptor in _in_place:
        if descriptor.failure is not None and descriptor.ends_commands:
            raise OutputLost(descriptor.title, descriptor.failure)


def unprinted() -> dict[str, Any] | None:
    """What could not be printed so far, by stream, see :meth:`Descriptor.unprinted`; None where there is nothing."""
    for stream, _ in _in_place:
        stream.flush()
    lost = {descriptor.title: found for _, descriptor in _in_place if (found := descriptor.unprinted())}
    return lost or None
