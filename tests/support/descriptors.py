"""Waiting for a descriptor of any number; ``select.select`` takes none beyond 1023."""

import select
from typing import Any


def has_something(source: Any, seconds: float = 0.0) -> bool:
    """Whether there is something to read, or an end, within this time.

    Args:
        source: a descriptor, or what has one.
        seconds: to wait at most.
    """
    poll = select.poll()
    poll.register(source, select.POLLIN)
    return bool(poll.poll(1000 * seconds))
