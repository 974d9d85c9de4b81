"""Fast form of the ternary quantiser."""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


class _Ternary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, weight: Tensor, dim: tuple[int, ...]) -> Tensor:
        scale = weight.abs().mean(dim, keepdim=True).clamp_(min=1e-5)
        return (weight / scale).round_().clamp_(-1, 1).mul_(scale)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


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
