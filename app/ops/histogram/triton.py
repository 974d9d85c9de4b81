# mypy: allow-untyped-defs
"""Form of quantiles by histogram for GPUs: one launch counts for all rows, one finds the quantiles of all.

Counts are added up by atomics, of integers, so that they are the same in any order.

Shape suffixes: R rows, Q quantiles, N bins.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from app.ops.histogram.naive import N_BINS

VALUES, WARPS = 1024, 8


def histogram(values: Tensor, low: float, high: float) -> Tensor:
    """Counts in equal bins; see :func:`app.ops.histogram.histogram`."""
    rows = values.flatten(1).contiguous()
    R, n = rows.shape
    counts = torch.zeros(R, N_BINS, dtype=torch.int64, device=rows.device)
    with torch.cuda.device_of(rows):
        _count[(R, triton.cdiv(n, VALUES))](rows, counts, n, low, N_BINS / (high - low), N_BINS, VALUES)
    return counts


def histogram_quantiles(levels: Tensor, counts: Tensor, low: float, high: float) -> Tensor:
    """Quantiles of what was counted; see :func:`app.ops.histogram.histogram_quantiles`."""
    R, Q = counts.shape[0], levels.shape[0]
    found = torch.empty(R, Q, dtype=torch.float64, device=counts.device)
    width = (high - low) / N_BINS
    with torch.cuda.device_of(counts):
        _quantiles[(R,)](
            levels.contiguous(), counts.contiguous(), found, Q, low, width, N_BINS, num_warps=WARPS
        )
    return found


@triton.jit
def _count(values, counts, n, low, per_unit, N: tl.constexpr, VALUES: tl.constexpr):
    at = tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    value = tl.load(values + tl.program_id(0).to(tl.int64) * n + at, mask=at < n, other=0.0).to(tl.float32)
    place = tl.floor((value - low) * per_unit)
    place = tl.where(place != place, 0.0, place)  # what is no number is counted too
    bin = tl.minimum(tl.maximum(place, 0.0), N - 1.0).to(tl.int32)
    one = tl.full((VALUES,), 1, tl.int64)
    tl.atomic_add(counts + tl.program_id(0).to(tl.int64) * N + bin, one, mask=at < n, sem="relaxed")


@triton.jit
def _quantiles(levels, counts, found, n_levels, low, width, N: tl.constexpr):
    bin = tl.arange(0, N)
    count = tl.load(counts + tl.program_id(0).to(tl.int64) * N + bin)
    cumulative = tl.cumsum(count, 0)
    last = tl.maximum(tl.sum(count, 0) - 1, 0)
    for level in range(n_levels):
        position = tl.load(levels + level).to(tl.float64) * last.to(tl.float64)
        below = position.to(tl.int64)
        lower = _placed(count, cumulative, bin, below, low, width, N)
        upper = _placed(count, cumulative, bin, tl.minimum(below + 1, last), low, width, N)
        value = lower + (upper - lower) * (position - below.to(tl.float64))
        tl.store(found + tl.program_id(0) * n_levels + level, value)


@triton.jit
def _placed(count, cumulative, bin, rank, low, width, N: tl.constexpr):
    """Where the value of this rank lies, as if those of a bin were spread over it evenly."""
    own = tl.minimum(tl.sum((cumulative <= rank).to(tl.int32), 0), N - 1)
    inside = tl.sum(tl.where(bin == own, count, 0), 0)
    before = tl.sum(tl.where(bin == own, cumulative, 0), 0) - inside
    share = ((rank - before).to(tl.float64) + 0.5) / tl.maximum(inside, 1).to(tl.float64)
    return low + (own.to(tl.float64) + share) * width
