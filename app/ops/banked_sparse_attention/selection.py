"""The largest entries of each row, the first of equals."""

import torch
from torch import Tensor

# Up to this k the CPU finds k maxima, each a vectorised pass, faster than it runs ``topk``: at k = 8 in a
# third of the time (3.0 ms against 8.7 ms for 4096 rows of 256 on one core), at k = 32 in two thirds.
WORTHWHILE_MAXIMA = 32
# Fewer rows are left to ``topk`` all the same: k passes are too many calls (one row of 2048: 34 µs against 105).
WORTHWHILE_ROWS = 64
# This few entries are sorted on the CPU, in one call: one row of 512 takes 11 µs, against 31 by ``topk``.
ENTRIES_TO_SORT = 2**11


def largest_first(scores: Tensor, k: int) -> Tensor:
    """Positions of the k largest entries on the last axis, in falling order; of equals the lowest wins.

    ``torch.topk`` leaves open which of several equal entries it returns, and they are common: in a first
    layer that sees no positions, every occurrence of a character has the same score.

    fp32 scores are turned into integers of the same order, with the reversed position in their low bits: all
    entries then differ, and the largest integers are the answer.

    Args:
        scores: ``(..., n)`` fp32 or wider, ``n < 2³²``.
        k: at most n.

    Returns:
        ``(..., k)`` int64.
    """
    is_on_cpu, n_entries = scores.device.type == "cpu", scores.numel()
    if scores.dtype != torch.float32 or (is_on_cpu and n_entries <= ENTRIES_TO_SORT):
        return scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    bits = (scores + 0.0).view(torch.int32)  # −0 becomes +0: they are equal as numbers
    # IEEE 754 orders positive numbers like integers and negative ones the other way round.
    order = (bits >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits)
    n = scores.shape[-1]
    reversed_position = torch.arange(n - 1, -1, -1, device=scores.device)
    unique = order.long().bitwise_left_shift_(32).bitwise_or_(reversed_position)
    if is_on_cpu and k <= WORTHWHILE_MAXIMA and n_entries >= WORTHWHILE_ROWS * n:
        return _maxima(unique, k)
    return _position(unique.topk(k, -1).values, n)


def _maxima(unique: Tensor, k: int) -> Tensor:
    """The k largest, one after the other; overwrites what it has found."""
    n = unique.shape[-1]
    positions = []
    for _ in range(k):
        positions.append(_position(unique.amax(-1, keepdim=True), n))
        unique.scatter_(-1, positions[-1], torch.iinfo(torch.int64).min)
    return torch.cat(positions, -1)


def _position(unique: Tensor, n: int) -> Tensor:
    return (n - 1) - unique.bitwise_and(0xFFFFFFFF)
