"""How many processes train together, as seen from inside a network."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

# Not a context variable: with activation checkpointing a forward runs again in a thread of the backward pass.
_is_alone = False


def world_size() -> int:
    """Processes whose batches make up the global batch; 1 without a process group."""
    if _is_alone or not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size()


@contextmanager
def this_rank_alone() -> Iterator[None]:
    """For the time of a ``with`` block, :func:`world_size` is 1 on this rank.

    For a forward that the other ranks do not make at the same time: a network that asks :func:`world_size`
    before it talks to them then keeps to its own batch.
    """
    global _is_alone
    before, _is_alone = _is_alone, True
    try:
        yield
    finally:
        _is_alone = before
