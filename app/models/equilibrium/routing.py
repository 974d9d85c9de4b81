"""Which of four routes a token takes, by its deviation.

Shape suffixes: B batch, T sequence.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from app.models.equilibrium.signal import Statistics
from app.models.equilibrium.statistics import global_quantiles, is_recomputing
from app.models.ranks import add_over_ranks, world_size
from app.ops.histogram import histogram, histogram_quantiles
from app.ops.routing import routing
from app.ops.routing.naive import shifted

ROUTES = ("forward", "branch", "backward", "plastic")
FORWARD, BRANCH, BACKWARD, PLASTIC = range(4)
Soft = Literal["centres", "ordinal"]
Quantile = Literal["sort", "histogram"]


class RouteOutput(NamedTuple):
    """The decision for every token.

    Attributes:
        route: ``(B, T)`` int64 in 0 .. 3: forward, branch, backward, plastic.
        probabilities: ``(B, T, 4)``, the soft form of the same decision.
        thresholds: ``(3)``, ascending, with learned offsets.
    """

    route: Tensor
    probabilities: Tensor
    thresholds: Tensor


class RoutingDecision(nn.Module):
    """Thresholds that follow the quantiles of the deviation, so that each route gets its share of tokens.

    Args:
        init_thresholds: the three thresholds before any batch.
        target_fractions: share of tokens per route; normalised.
        threshold_momentum: weight of a new batch's quantiles, in (0, 1].
        temperature: sharpness of the soft form, per unit of deviation.
        offset_scale: how far learning may shift each threshold, in units of deviation.
        statistics: ``current`` moves the thresholds in training before they are used, and uses the batch's own
            quantiles in evaluation until they ever moved; ``lagged`` uses those from before the batch always and
            leaves moving them to :meth:`move`. A single token, which moves no signal, is enough for ``current``;
            an optimizer step of a single token moves nothing with ``lagged``.
        soft: ``centres``, softmax over distances to the middle of each interval; ``ordinal``, differences of
            sigmoids at the thresholds themselves, whose mean agrees with the hard fractions.
        quantile: ``sort`` is exact for each batch; over the micro-batches and ranks of an optimizer step with
            ``lagged`` it is the mean of theirs. ``histogram`` counts bins over ``value_range`` and is at most one bin
            off, also for a whole step.
        value_range: of the histogram.
    """

    target_cdf: Tensor
    running_thresholds: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        init_thresholds: Sequence[float] = (0.75, 1.0, 1.35),
        target_fractions: Sequence[float] = (0.55, 0.25, 0.15, 0.05),
        threshold_momentum: float = 0.2,
        temperature: float = 8.0,
        offset_scale: float = 0.2,
        statistics: Statistics = "current",
        soft: Soft = "centres",
        quantile: Quantile = "sort",
        value_range: tuple[float, float] = (0.0, 4.0),
    ):
        super().__init__()
        self.threshold_momentum = threshold_momentum
        self.temperature = temperature
        self.offset_scale = offset_scale
        self.statistics = statistics
        self.soft = soft
        self.quantile = quantile
        self.value_range = value_range
        self.fractions = tuple(fraction / sum(target_fractions) for fraction in target_fractions)
        cdf = tuple(accumulate(self.fractions))[:-1]
        self.register_buffer("target_cdf", torch.tensor(cdf))
        self.register_buffer("running_thresholds", torch.tensor(tuple(init_thresholds)))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64))
        self.threshold_offsets = nn.Parameter(torch.zeros(len(cdf)))

    @property
    def target_fractions(self) -> Tensor:
        """``(4)`` share of tokens that each route shall get."""
        ends = self.target_cdf.new_zeros(1)
        return torch.cat([ends, self.target_cdf, ends + 1]).diff()

    def forward(self, deviation: Tensor) -> RouteOutput:
        """Decide on ``(B, T)`` deviations."""
        deviation = deviation.to(torch.promote_types(deviation.dtype, self.target_cdf.dtype))
        base, is_ordinal = self._base_thresholds(deviation.detach()), self.soft == "ordinal"
        return RouteOutput(
            *routing(deviation, base, self.threshold_offsets, self.offset_scale, self.temperature, is_ordinal)
        )

    @torch.no_grad()
    def _base_thresholds(self, deviation: Tensor) -> Tensor:
        """Thresholds without offsets, moved in training."""
        if self.statistics == "lagged" or deviation.numel() == 0 or (self.training and is_recomputing()):
            return self.running_thresholds
        if self.training:
            self.move(self._quantiles(deviation, across_ranks=True), self.target_cdf.new_ones(()).bool())
            return self.running_thresholds
        own = self._quantiles(deviation, across_ranks=False)
        return torch.where(self.num_batches_tracked > 0, self.running_thresholds, own)

    def _quantiles(self, deviation: Tensor, across_ranks: bool) -> Tensor:
        if self.quantile == "sort":
            return global_quantiles(deviation, self.target_cdf, across_ranks)
        counts = histogram(deviation.flatten()[None], *self.value_range)
        if across_ranks and world_size() > 1:
            add_over_ranks(counts)
        return histogram_quantiles(self.target_cdf, counts, *self.value_range)[0]

    @torch.no_grad()
    def move(self, quantiles: Tensor, seen: Tensor) -> None:
        """Moves the thresholds towards ``(3)`` quantiles; ``seen`` False leaves everything as it is."""
        weight = self.threshold_momentum * seen.to(self.target_cdf.dtype)
        self.running_thresholds.lerp_(quantiles.to(self.target_cdf.dtype), weight)
        self.num_batches_tracked += seen

    def _threshold(self, index: int) -> Tensor:
        return shifted(self.running_thresholds, self.threshold_offsets, self.offset_scale)[index].detach()

    @property
    def theta1(self) -> Tensor:
        """``()``, above which a token branches."""
        return self._threshold(0)

    @property
    def theta2(self) -> Tensor:
        """``()``, above which a token goes back a block."""
        return self._threshold(1)

    @property
    def theta3(self) -> Tensor:
        """``()``, above which a token is plastic."""
        return self._threshold(2)

    def running_state(self) -> list[Tensor]:
        return [self.running_thresholds, self.num_batches_tracked]
