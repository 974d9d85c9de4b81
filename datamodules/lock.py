"""One process at a time, among those that would otherwise do the same work."""

import errno
import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive(path: Path, on_wait: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Holds a lock that the system releases when the process ends, however it ends.

    Some network file systems have no locks; several processes then do the same work, whose result is moved
    into place whole, so that this is wasteful but harmless.

    Args:
        path: of the lock file, which stays.
        on_wait: called once when somebody else holds the lock.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                on_wait()
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
