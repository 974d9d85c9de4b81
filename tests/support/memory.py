"""Memory that something takes, measured in a process of its own."""

import os
import pickle
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

#: address space beyond which a measured process gets no more, so that a failed test does not take the machine along
MOST_BYTES = 2 << 30
MOST_SECONDS = 60


class Outcome(NamedTuple):
    """How a call ended.

    Attributes:
        error: type and text of what it raised; None where it returned.
        n_bytes: that the process took at most, above what it held before.
    """

    error: tuple[str, str] | None
    n_bytes: int


def measured(call: Callable[[], object]) -> Outcome:
    """Calls a function in a fork of this process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            signal.alarm(MOST_SECONDS)
            resource.setrlimit(resource.RLIMIT_AS, (_size() + MOST_BYTES, resource.RLIM_INFINITY))
            Path("/proc/self/clear_refs").write_text("5")  # the most so far counts from now
            before = _most()
            error = None
            try:
                call()
            except BaseException as caught:
                error = type(caught).__name__, str(caught)
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump((error, _most() - before), pipe)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        content = pipe.read()
    os.waitpid(child, 0)
    assert content, f"killed: it took more than {MOST_SECONDS} s, or all memory"
    return Outcome(*pickle.loads(content))


def _most() -> int:
    """Bytes of memory that this process has held at most."""
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def _size() -> int:
    """Bytes of this process's address space."""
    return 1024 * int(Path("/proc/self/status").read_text().split("VmSize:")[1].split()[0])
