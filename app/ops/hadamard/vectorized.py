"""Fast form of the Walsh–Hadamard transform: log₂ n passes of sums and differences."""

from typing import Any

import torch
from torch import Tensor


class _Hadamard(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _transform(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _transform(grad)  # H is symmetric


def _transform(x: Tensor) -> Tensor:
    n = x.shape[-1]
    size = n & -n
    y = x * size**-0.5
    stride = 1
    while stride < size:
        first, second = y.unflatten(-1, (n // (2 * stride), 2, stride)).unbind(-2)
        y = torch.stack((first + second, first - second), -2).flatten(-3)
        stride *= 2
    return y


def hadamard(x: Tensor) -> Tensor:
    """``x H`` over the last axis, with H the orthonormal Walsh–Hadamard matrix in Sylvester's order.

    H is symmetric and its own inverse. Where n is no power of two, H is block-diagonal: blocks of the largest
    power of two that divides n, so that an odd n leaves x as it is.

    Args:
        x: ``(..., n)`` floating point.

    Returns:
        ``(..., n)`` in the dtype of ``x``.
    """
    return _Hadamard.apply(x)
