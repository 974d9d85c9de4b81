"""Files that somebody else may have written, read within bounds.

No pipe is waited for, no size is taken on trust, and memory is counted before it is taken.
"""

import errno
import io
import json
import os
import stat
from typing import Any

#: memory that any file may take beside twice its bytes; what the allocator adds stays below 64 MB with it
FREE_BYTES = 48 << 20
#: how deep values may be nested; what walks them later goes down a function call or two for each
MAX_DEPTH = 64
#: status, manifest, figures: a few kilobytes each, more after a thousand launches
MAX_RECORD_BYTES = 16 << 20
#: curves, samples, tokenizers, texts to look at: more than any has, and still read in seconds
MAX_TABLE_BYTES = 64 << 20
#: memory that a byte of JSON leads to, and each of these beside it
_JSON_BYTES = 4
_JSON_COSTS = {b"{": 768, b"[": 128, b",": 64, b'"': 64}


class BudgetError(ValueError):
    """A file would take more memory than its size allows."""


class Budget:
    """Memory that may still be taken.

    Args:
        left: in bytes.
    """

    def __init__(self, left: int):
        self.left = left

    @classmethod
    def of_file(cls, n_bytes: int) -> "Budget":
        """What a file of this size may take: twice that, and a little more."""
        return cls(2 * n_bytes + FREE_BYTES)

    def charge(self, n_bytes: int) -> None:
        """Counts bytes that are about to be taken.

        Raises:
            BudgetError: they are more than there are left.
        """
        self.left -= n_bytes
        if self.left < 0:
            raise BudgetError("would take more memory than twice its size and 64 MB")


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Opens a file for reading, unless it is a folder, a pipe or a device, on which a reader could wait for ever.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))
    return open(descriptor, "rb")


def read_bytes(path: str | os.PathLike[str], at_most: int = MAX_RECORD_BYTES) -> bytes:
    """The content of a regular file of limited size.

    Raises:
        OSError: as in :func:`open_regular`.
        ValueError: it is larger.
    """
    require_size(path, at_most)
    with open_regular(path) as file:
        return file.read(at_most)


def require_size(path: str | os.PathLike[str], at_most: int) -> None:
    """Refuses a file that is no regular one or larger; for what is read by somebody else.

    Raises:
        OSError: as in :func:`open_regular`.
        ValueError: it is larger.
    """
    with open_regular(path) as file:
        n_bytes = os.fstat(file.fileno()).st_size
    if n_bytes > at_most:
        raise ValueError(f"has {n_bytes:,} bytes, at most {at_most:,} are read")


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value of a JSON file of limited size and depth, whose values take little memory beside its own.

    Raises:
        OSError: as in :func:`open_regular`.
        ValueError: it is larger, no JSON in UTF-8, or nested too deep.
    """
    content = read_bytes(path)
    charge_json(content, Budget.of_file(len(content)))
    return parse_json(content)


def charge_json(content: bytes, budget: Budget) -> None:
    """Charges what the values of a JSON text take at most, before they are made.

    Raises:
        BudgetError: it is more than there is left.
    """
    budget.charge(
        _JSON_BYTES * len(content) + sum(cost * content.count(sign) for sign, cost in _JSON_COSTS.items())
    )


def parse_json(content: bytes | str) -> Any:
    """A JSON value of limited depth.

    Raises:
        ValueError: it is no JSON in UTF-8, or nested too deep.
    """
    too_deep = ValueError(f"is nested more than {MAX_DEPTH} deep")
    try:
        value = json.loads(content if isinstance(content, str) else content.decode())
    except RecursionError:
        raise too_deep from None
    levels = [iter((value,))]
    while levels:
        for entry in levels[-1]:
            if isinstance(entry, dict | list):
                levels.append(iter(entry.values() if isinstance(entry, dict) else entry))
                break
        else:
            levels.pop()
        if len(levels) > MAX_DEPTH + 1:
            raise too_deep
    return value
