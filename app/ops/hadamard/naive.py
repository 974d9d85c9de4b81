"""Reference form of the Walsh–Hadamard transform: a product with the matrix itself."""

import torch
from torch import Tensor


def hadamard(x: Tensor) -> Tensor:
    """``x H`` over the last axis; see :func:`app.ops.hadamard.hadamard`."""
    with torch.autocast(x.device.type, enabled=False):
        return x @ hadamard_matrix(x.shape[-1]).to(x)


def hadamard_matrix(n: int) -> Tensor:
    """The orthonormal ``(n, n)`` matrix, fp64; equal blocks on the diagonal where n is no power of two."""
    size = n & -n  # the largest power of two that divides n
    block = torch.ones(1, 1, dtype=torch.float64)
    while block.shape[0] < size:
        block = torch.cat([torch.cat([block, block], 1), torch.cat([block, -block], 1)])  # Sylvester
    return torch.block_diag(*[block * size**-0.5] * (n // size))
