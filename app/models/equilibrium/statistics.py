"""Batch statistics that move running values: of this rank, of all ranks, or of a whole optimizer step.

Shape suffixes: L layers, R routers, B batch, T sequence, D width, Q quantiles.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from app.models.ranks import add_over_ranks, of_all_ranks, world_size
from app.ops.histogram import N_BINS, histogram, histogram_quantiles


def is_recomputing() -> bool:
    """Whether this forward runs inside a backward pass, as activation checkpointing does to save memory.

    What it would add to a statistic has been added by the first pass already.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def global_moments(values: Tensor, around: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance over the first dimension, of all ranks' equally long batches.

    Args:
        values: ``(n, …)``, n ≥ 1.
        around: ``(…)``, a value near the mean and the same on every rank, which keeps the sums short.

    Returns:
        Two tensors ``(…)``; the variance is 0 where there is a single value.
    """
    n_ranks = world_size()
    if n_ranks == 1:
        variance, mean = torch.var_mean(values, 0, correction=min(1, values.shape[0] - 1))
        return mean, variance
    shifted = values.double() - around
    sums = torch.stack([shifted.sum(0), shifted.square().sum(0)])
    add_over_ranks(sums)
    mean, variance = moments(sums[0], sums[1], sums.new_full((), values.shape[0] * n_ranks))
    return (around + mean).to(values.dtype), variance.to(values.dtype)


def moments(sums: Tensor, squares: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance from sums and squared sums; zeros where ``count`` is 0."""
    mean = sums / count.clamp(min=1)
    return mean, (squares - count * mean.square()).clamp(min=0) / (count - 1).clamp(min=1)


def global_quantiles(values: Tensor, levels: Tensor, across_ranks: bool = True) -> Tensor:
    """Exact quantiles, linear between neighbours.

    Args:
        values: any shape, n ≥ 1 entries; :func:`torch.quantile` would refuse more than 2^24.
        levels: ``(Q,)`` in [0, 1].
        across_ranks: whether they are those of all ranks' equally many values.

    Returns:
        ``(Q,)``.
    """
    flat = values.flatten()
    n_ranks = world_size() if across_ranks else 1
    if n_ranks > 1:
        flat = torch.cat(of_all_ranks(flat))
    ordered = flat.sort().values
    position = levels.double() * (flat.numel() - 1)
    below = position.floor().long()
    above = (below + 1).clamp(max=flat.numel() - 1)
    return torch.lerp(ordered[below], ordered[above], (position - below).to(ordered.dtype))


class StepStatistics(nn.Module):
    """What all layers see during one optimizer step, summed up and applied after it (``statistics="lagged"``).

    Sums are taken around the running means, which do not move during the step. All buffers are non-persistent
    and add up over ranks and micro-batches, so that one all-reduce makes them those of the global batch. With
    sorted quantiles, those of the micro-batches are averaged; with histograms they are the global batch's own.

    Args:
        n_layers: L.
        d_model: D.
        n_routers: R, 1 (shared) or L.
        n_levels: Q, thresholds of a router.
        by_histogram: whether quantiles come from histograms.
        value_range: of the histograms.
    """

    count: Tensor
    sums: Tensor
    squares: Tensor
    deviation_sums: Tensor
    quantiles: Tensor

    def __init__(
        self,
        n_layers: int,
        d_model: int,
        n_routers: int,
        n_levels: int,
        by_histogram: bool,
        value_range: tuple[float, float],
    ):
        super().__init__()
        self.n_routers = n_routers
        self.by_histogram = by_histogram
        self.value_range = value_range
        quantiles = (
            torch.zeros(n_routers, N_BINS, dtype=torch.int64)
            if by_histogram
            else torch.zeros(n_routers, n_levels)
        )
        buffers = {
            "count": torch.zeros((), dtype=torch.int64),  # tokens of each layer
            "sums": torch.zeros(n_layers, d_model),
            "squares": torch.zeros(n_layers, d_model),
            "deviation_sums": torch.zeros(2, n_layers),  # of the deviations and of their squares
            "quantiles": quantiles,  # histograms, or quantiles times tokens
        }
        for name, zeros in buffers.items():
            self.register_buffer(name, zeros, persistent=False)

    def sums_of_step(self) -> list[Tensor]:
        """The buffers, to be added up over the ranks and emptied after use."""
        return [self.count, self.sums, self.squares, self.deviation_sums, self.quantiles]

    @torch.no_grad()
    def add_outputs(self, layer: int, sums: Tensor) -> None:
        """Takes in what one block put out: ``(2, D)``, sums of distances to its running mean, and of their squares."""
        self.sums[layer] += sums[0]
        self.squares[layer] += sums[1]

    @torch.no_grad()
    def add_deviations(
        self, deviations: Sequence[Tensor], around: Sequence[Tensor], scores: Sequence[Tensor], levels: Tensor
    ) -> None:
        """Takes in what was routed on, of all layers at once.

        Args:
            deviations: of each layer, ``(B, T)``.
            around: a value ``()`` near each layer's mean deviation.
            scores: what the routers read, ``(B, T)`` per layer.
            levels: ``(Q,)`` of the quantiles.
        """
        self.count += deviations[0].numel()
        shifted = torch.stack([d - c for d, c in zip(deviations, around, strict=True)]).flatten(1)  # (L, B·T)
        self.deviation_sums += torch.stack([shifted.sum(1), shifted.square().sum(1)])
        per_router = torch.stack(list(scores)).reshape(self.n_routers, -1)
        if self.by_histogram:
            self.quantiles += histogram(per_router, *self.value_range)
        else:
            ordered = torch.stack([global_quantiles(row, levels, across_ranks=False) for row in per_router])
            self.quantiles += ordered * per_router.shape[1]

    def step_quantiles(self, levels: Tensor) -> Tensor:
        """``(R, Q)`` quantiles of the step."""
        if self.by_histogram:
            return histogram_quantiles(levels, self.quantiles, *self.value_range)
        per_router = self.count * (self.sums.shape[0] // self.n_routers)
        return self.quantiles / per_router.clamp(min=1)
