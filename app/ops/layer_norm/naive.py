"""Reference form of LayerNorm: mean, variance and root one after the other."""

import torch
from torch import Tensor, where

from app.ops.layer_norm.vectorized import format_of, wide, without_constant_rows


def layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype | None = None
) -> Tensor:
    """``(x − mean x) / √(var x + ε)``; see :func:`app.ops.layer_norm.layer_norm`."""
    dtype, x = dtype or format_of(x), wide(x)
    centred = x - x.mean(-1, keepdim=True)
    reciprocal = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    z = centred * reciprocal
    z = where(without_constant_rows(reciprocal.detach(), eps) > 0, z, z.detach())
    if weight is not None:
        z = z * wide(weight)
    if bias is not None:
        z = z + wide(bias)
    return z.to(dtype)
