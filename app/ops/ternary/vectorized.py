"""Fast forms of the ternary quantisers."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

SMALLEST_SCALE = 1e-5


class _Ternary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, weight: Tensor, dim: tuple[int, ...]) -> Tensor:
        quantised, scale = trits(weight, dim)
        # Not in place: torch.compile loses the gradient of what a function returns that it has written to.
        return quantised * scale

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _LearnedStepTernary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, step: Tensor) -> Tensor:
        ctx.save_for_backward(weight, step)
        quantised, scale = learned_step_trits(weight, step)
        return quantised * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        weight, step = ctx.saved_tensors
        ratio = weight / step.clamp(min=SMALLEST_SCALE)
        inside = ratio.abs() < 1
        # round(W/s) − W/s inside, ±1 outside: there the clipped ratio is what it rounds to.
        slope = ratio.clamp(-1, 1).round_().sub_(ratio.mul_(inside))
        scaled = (grad * slope).sum_to_size(step.shape) * (weight.numel() // step.numel()) ** -0.5
        return grad * inside, scaled


def trits(weight: Tensor, dim: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """What :func:`ternary` multiplies: −1, 0 or 1 in the shape and dtype of ``weight``, and the scales α."""
    scale = weight.abs().mean(dim, keepdim=True).clamp_(min=SMALLEST_SCALE)
    return (weight / scale).round_().clamp_(-1, 1), scale


def learned_step_trits(weight: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """What :func:`learned_step_ternary` multiplies: −1, 0 or 1, and the steps in use."""
    scale = step.clamp(min=SMALLEST_SCALE)
    return (weight / scale).clamp_(-1, 1).round_(), scale


def ternary(weight: Tensor, dim: tuple[int, ...]) -> Tensor:
    """Quantise weights to {−α, 0, α} (BitNet b1.58, arXiv 2402.17764).

    ``α = max(mean|W|, 1e-5)`` and ``Ŵ = α · clip(round(W/α), −1, 1)``, rounding half to even. The gradient of
    Ŵ passes to W unchanged for every entry (straight-through); α is not differentiated.

    Args:
        weight: any shape, floating point.
        dim: dimensions that share one scale; the others have a scale per entry.

    Returns:
        Ŵ, of the shape and dtype of ``weight``.
    """
    return _Ternary.apply(weight, dim)


def learned_step_ternary(weight: Tensor, step: Tensor) -> Tensor:
    """Quantise weights to {−s, 0, s} with a learned step s (LSQ, arXiv 1902.08153, with Q_n = Q_p = 1).

    ``Ŵ = s · round(clip(W/s, −1, 1))`` with s at least 1e-5. Gradients: to W where ``|W/s| < 1``, nothing
    elsewhere; to s ``round(W/s) − W/s`` where ``|W/s| < 1``, the sign of W elsewhere, summed and scaled by
    ``1/√(entries that share the step)``. The floor of s stops no gradient (one of zero would leave a step that has
    crossed it there for good, and the weight silent); in use it stays at the floor until it has come back.

    Args:
        weight: any shape, floating point.
        step: broadcastable to ``weight``, of as many dimensions.

    Returns:
        Ŵ, of the shape and dtype of ``weight``.
    """
    return _LearnedStepTernary.apply(weight, step)
