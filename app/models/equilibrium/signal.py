"""How far a token is from what its layer usually puts out.

Shape suffixes: B batch, T sequence, D width.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from app.models.equilibrium.statistics import global_moments, is_recomputing
from app.models.ranks import world_size
from app.ops.deviation import deviation

EPSILON = 1e-8
Statistics = Literal["current", "lagged"]


class EquilibriumOutput(NamedTuple):
    """What a signal says about a block's output.

    Attributes:
        deviation: ``(B, T)`` ≥ 0, root mean square over features of (x − running mean) / running deviation;
            about 1 for a usual token.
        warming_up: ``()`` bool, whether fewer than ``warmup_steps`` batches have moved the running values.
        sums: ``(2, D)``, over tokens, of x − running mean and of its square; None unless asked for.
    """

    deviation: Tensor
    warming_up: Tensor
    sums: Tensor | None


class EquilibriumSignal(nn.Module):
    """Running mean and variance of a block's output, and each token's distance to them.

    Args:
        d_model: D.
        momentum: weight of a new batch in the running values, in (0, 1].
        warmup_steps: batches (optimizer steps with ``lagged``) that have to move the running values before routing
            begins. With ``current`` the batch that makes them so many is the first to be routed, with ``lagged`` the
            one after it.
        statistics: ``current`` folds a training batch in before it is scored, which lets a token see later ones
            through the batch's statistics; ``lagged`` scores with the values from before and leaves moving them
            to :meth:`move` after the optimizer step.
        standardize: keep mean and variance of the deviation itself too, for :meth:`standardized`.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    deviation_mean: Tensor
    deviation_var: Tensor

    def __init__(
        self,
        d_model: int,
        momentum: float = 0.1,
        warmup_steps: int = 50,
        statistics: Statistics = "current",
        standardize: bool = False,
    ):
        super().__init__()
        self.momentum = momentum
        self.warmup_steps = warmup_steps
        self.statistics = statistics
        self.standardize = standardize
        self.register_buffer("running_mean", torch.zeros(d_model))
        self.register_buffer("running_var", torch.ones(d_model))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64))
        # Mean and variance of the deviation of a standard normal x, to first order in 1/D.
        self.register_buffer("deviation_mean", torch.ones(()) if standardize else None)
        self.register_buffer("deviation_var", torch.full((), 1 / (2 * d_model)) if standardize else None)

    def forward(self, x: Tensor, with_sums: bool = False) -> EquilibriumOutput:
        """Score ``(B, T, D)``, and ask for its sums; the gradient goes through x alone."""
        moves = self._moves_in_forward(x)
        if moves:
            with torch.no_grad():
                wide = x.detach().to(torch.promote_types(x.dtype, self.running_mean.dtype))
                mean, variance = global_moments(wide.flatten(0, 1), self.running_mean)
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)
                self.num_batches_tracked += 1
        distance, sums = deviation(x, self.running_mean, self.running_var, with_sums)
        if moves and self.standardize:
            with torch.no_grad():
                mean, variance = global_moments(distance.detach().flatten(), self.deviation_mean)
                self.deviation_mean.lerp_(mean.to(self.deviation_mean.dtype), self.momentum)
                self.deviation_var.lerp_(variance.to(self.deviation_var.dtype), self.momentum)
        return EquilibriumOutput(distance, self.is_warming_up, sums)

    @property
    def is_warming_up(self) -> Tensor:
        """``()`` bool on the signal's device, as it stands: what the last forward in training returned."""
        return self.num_batches_tracked < self.warmup_steps

    def _moves_in_forward(self, x: Tensor) -> bool:
        if not self.training or self.statistics == "lagged" or is_recomputing():
            return False
        return x.shape[0] * x.shape[1] * world_size() >= 2

    def standardized(self, deviation: Tensor) -> Tensor:
        """The deviation in units of its own running deviation, ``(B, T)``; itself without ``standardize``."""
        if not self.standardize:
            return deviation
        return (deviation - self.deviation_mean) / (self.deviation_var + EPSILON).sqrt()

    @property
    def usual_deviation(self) -> Tensor:
        """``()``, a value near the mean deviation."""
        return self.deviation_mean if self.standardize else self.running_mean.new_ones(())

    @torch.no_grad()
    def move(self, outputs: tuple[Tensor, Tensor], deviations: tuple[Tensor, Tensor], seen: Tensor) -> None:
        """Moves the running values by the statistics of one optimizer step.

        Args:
            outputs: mean and variance ``(D)`` of the block's output, around the running mean.
            deviations: mean and variance ``()`` of the deviation, around :attr:`usual_deviation`.
            seen: ``()`` bool, False leaves everything as it is.
        """
        weight = self.momentum * seen.to(self.running_mean.dtype)
        self.running_mean += weight * outputs[0]
        self.running_var.lerp_(outputs[1], weight)
        self.num_batches_tracked += seen
        if self.standardize:
            self.deviation_mean += weight * deviations[0]
            self.deviation_var.lerp_(deviations[1], weight)

    def running_state(self) -> list[Tensor]:
        moving = [self.running_mean, self.running_var, self.num_batches_tracked]
        return [*moving, self.deviation_mean, self.deviation_var] if self.standardize else moving
