"""What layers learn from the gradient of the logits by direct feedback alignment, in few and aligned products.

Shape suffixes: N tokens, V logits.
"""

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class DirectFeedback(torch.autograd.Function):
    """The logits, unchanged; backward also gives ``(e R ⊙ f′)ᵀ x`` to each weight and ``Σ e R ⊙ f′`` to each bias."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, *layers: Tensor | None) -> Tensor:
        ctx.save_for_backward(*(part for at in range(0, len(layers), 5) for part in layers[at : at + 3]))
        return logits.view_as(logits)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (e,) = gradients
        errors = Errors(e.flatten(0, -2))
        found: list[Tensor | None] = [e]
        for number in range(len(ctx.saved_tensors) // 3):
            x, matrix, factor = ctx.saved_tensors[3 * number : 3 * number + 3]
            has_weight, has_bias = ctx.needs_input_grad[5 * number + 4 : 5 * number + 6]
            found += [None, None, None, None, None]
            if factor is not None:
                error = errors.projected(matrix) * factor.flatten(0, -2).to(e.dtype)
                if has_weight:
                    found[-2] = (error.T @ x.flatten(0, -2).to(error.dtype)).to(matrix.dtype)
                if has_bias:
                    found[-1] = error.sum(0).to(matrix.dtype)
                continue
            if has_weight:
                found[-2] = errors.gradient(x.flatten(0, -2), matrix)
            if has_bias:
                found[-1] = matrix.T @ errors.sum.to(matrix.dtype)
        return tuple(found)


class Errors:
    """The gradient e of the logits, and what is made of it for one layer after the other.

    Layers with the same input share ``eᵀ x``, whatever their matrices. Rows of e are filled up with zeros to whole
    16 bytes: a GPU multiplies rows that begin elsewhere by kernels that read one number at a time.

    Args:
        e_NV: ``(N, V)``.
    """

    def __init__(self, e_NV: Tensor):
        self.n_logits = e_NV.shape[1]
        self.n_missing = -self.n_logits % (16 // e_NV.element_size())
        self.e_NV = F.pad(e_NV, (0, self.n_missing))
        self._sums: dict[object, Tensor] = {}

    @cached_property
    def sum(self) -> Tensor:
        """``Σ e`` ``(V)``."""
        return self.e_NV.sum(0)[: self.n_logits]

    def projected(self, matrix: Tensor) -> Tensor:
        """``e R`` ``(N, out)``."""
        return self.e_NV @ F.pad(matrix.to(self.e_NV.dtype), (0, 0, 0, self.n_missing))

    def gradient(self, x: Tensor, matrix: Tensor) -> Tensor:
        """``(e R)ᵀ x`` ``(out, in)`` in the cheaper of the two orders."""
        (N, n_in), (V, n_out) = x.shape, matrix.shape
        if V * n_in * (N + n_out) < N * n_out * (V + n_in):
            return matrix.T @ self._with(x).to(matrix.dtype)
        return (self.projected(matrix).T @ x.to(self.e_NV.dtype)).to(matrix.dtype)

    def _with(self, x: Tensor) -> Tensor:
        """``eᵀ x`` ``(V, in)``; x lives as long as this object, so that its place tells it."""
        place = (x.data_ptr(), x.shape, x.stride(), x.dtype)
        if place not in self._sums:
            self._sums[place] = (self.e_NV.T @ x.to(self.e_NV.dtype))[: self.n_logits]
        return self._sums[place]
