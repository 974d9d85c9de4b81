"""The weights of the sigmoid attention, for the reference and for who asks to see them."""

from typing import Any

import torch
from torch import Tensor


class _StraightThroughSigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def sigmoid_weights(q: Tensor, k: Tensor, bias: Tensor, straight_through: bool = False) -> Tensor:
    """``sigmoid(q kᵀ / √d + b)``, 0 for positions > t: ``(B, H, T, S)``, fp32 at least.

    Args:
        q: ``(B, H, T, d)``, the queries of the last T of S positions.
        k: ``(B, H, S, d)``, S ≥ T.
        bias: ``()`` or ``(T, 1)``, added to the scores.
        straight_through: the sigmoid passes gradients unchanged.
    """
    T, S = q.shape[-2], k.shape[-2]
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    # A bias of −5 in bf16 would be off by several per cent once through the sigmoid.
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) + bias
    if T > 1:
        future = torch.ones(T, S, dtype=torch.bool, device=q.device).triu(S - T + 1)
        scores = scores.masked_fill(future, float("-inf"))
    weights: Tensor = _StraightThroughSigmoid.apply(scores) if straight_through else torch.sigmoid(scores)
    return weights
