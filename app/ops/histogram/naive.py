"""Reference form of quantiles by histogram: they are at most one bin off, and counts add up over steps and ranks.

Shape suffixes: R rows, Q quantiles, N bins.
"""

import torch
from torch import Tensor

N_BINS = 4096


def histogram(values: Tensor, low: float, high: float) -> Tensor:
    """Counts in equal bins over [low, high), the outer two open to their sides.

    Args:
        values: ``(R, …)``.
        low: lower end of the first bin.
        high: upper end of the last bin.

    Returns:
        ``(R, N)`` int64; integer sums are the same in any order.
    """
    values = values.flatten(1)
    # In fp32 at least: the number of the last bin does not exist in bf16, and is rounded to one that there is not.
    bins = (
        (values.to(torch.promote_types(values.dtype, torch.float32)) - low) * (N_BINS / (high - low))
    ).floor()
    # A value that is not finite lands in a bin too: the step that it spoils is not kept.
    bins = bins.nan_to_num(0.0).clamp(0, N_BINS - 1).long()
    counts = torch.zeros(values.shape[0], N_BINS, dtype=torch.int64, device=values.device)
    return counts.scatter_add_(1, bins, torch.ones_like(bins))


def histogram_quantiles(levels: Tensor, counts: Tensor, low: float, high: float) -> Tensor:
    """Quantiles of what was counted by :func:`histogram`, at most one bin from the exact ones inside [low, high).

    The quantile at level q lies between the ordered values ⌊q(n−1)⌋ and the next; each is placed inside its own
    bin by its rank there, because the two may lie in bins far apart.

    Args:
        levels: ``(Q,)`` in [0, 1].
        counts: ``(R, N)`` int64.
        low: as for the counts.
        high: as for the counts.

    Returns:
        ``(R, Q)`` float64; meaningless where nothing was counted.
    """
    cumulative = counts.cumsum(1)  # (R, N)
    last = (cumulative[:, -1:] - 1).clamp(min=0)  # (R, 1)
    position = levels.double() * last  # (R, Q)
    below = position.floor().long()
    ranks = torch.cat([below, torch.minimum(below + 1, last)], dim=1)  # (R, 2Q)
    bins = torch.searchsorted(cumulative, ranks, right=True).clamp(max=N_BINS - 1)
    inside = counts.gather(1, bins)
    before = cumulative.gather(1, bins) - inside
    share = (ranks - before + 0.5) / inside.clamp(min=1)
    placed = low + (bins + share) * ((high - low) / N_BINS)
    lower, upper = placed.double().chunk(2, dim=1)
    return torch.lerp(lower, upper, position - below)
