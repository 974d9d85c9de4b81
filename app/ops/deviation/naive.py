"""Reference form of the deviation.

Shape suffixes: B batch, T sequence, D width.
"""

import torch
from torch import Tensor

#: added to a running standard deviation
EPSILON = 1e-8


def deviation(
    x: Tensor, mean: Tensor, variance: Tensor, with_sums: bool = False
) -> tuple[Tensor, Tensor | None]:
    """How far tokens are from what is usual, and the sums that move what is.

    Args:
        x: ``(B, T, D)``; the gradient goes through it alone, and not through the sums.
        mean: ``(D)``, running.
        variance: ``(D)``, running.
        with_sums: whether the sums are wanted too.

    Returns:
        ``(B, T)``, root mean square over features of (x − mean) / (√variance + ε), fp32 at least; ``(2, D)``, sums over
        tokens of x − mean and of its square; None where they are not wanted.
    """
    shifted = x.to(torch.promote_types(x.dtype, mean.dtype)) - mean
    scaled = shifted / (variance.sqrt() + EPSILON)
    distance = torch.linalg.vector_norm(scaled, dim=-1) / x.shape[-1] ** 0.5
    if not with_sums:
        return distance, None
    with torch.no_grad():
        tokens = shifted.detach().flatten(0, 1)
        sums = torch.stack([tokens.sum(0), tokens.square().sum(0)])
    return distance, sums
