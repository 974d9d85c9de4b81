"""How many processes train together, as seen from inside a network."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

# Not a context variable: with activation checkpointing a forward runs again in a thread of the backward pass.
_is_alone = False


def world_size() -> int:
    """Processes whose batches make up the global batch; 1 without a process group."""
    if _is_alone or not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size()


def add_over_ranks(tensor: Tensor) -> None:
    """Replaces a tensor, in place, by its sum over the ranks.

    Raises:
        RuntimeError: within a capture; a graph that waits for a lost rank would be stuck where nobody looks.
    """
    _refuse_in_capture(tensor)
    dist.all_reduce(tensor)


def of_all_ranks(tensor: Tensor) -> list[Tensor]:
    """A tensor of every rank, all of one shape.

    Raises:
        RuntimeError: as :func:`add_over_ranks` does.
    """
    _refuse_in_capture(tensor)
    every = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(every, tensor.contiguous())
    return every


def _refuse_in_capture(tensor: Tensor) -> None:
    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("the ranks exchange numbers inside of the forward pass")


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
