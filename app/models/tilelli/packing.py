"""Ternary weights in base 3: five trits in a byte, since 3⁵ = 243 ≤ 256."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

TRITS_PER_BYTE = 5
_POWERS = tuple(3**place for place in range(TRITS_PER_BYTE))
N_CODES = 3**TRITS_PER_BYTE


def pack(trits: Tensor) -> Tensor:
    """Trits −1, 0, 1 of any shape as ``(⌈n/5⌉,)`` uint8, the first of five in the lowest place; padded with zeros."""
    digits = trits.flatten().to(torch.int16) + 1
    missing = -len(digits) % TRITS_PER_BYTE
    digits = torch.cat([digits, digits.new_ones(missing)]).view(-1, TRITS_PER_BYTE)
    return (digits * digits.new_tensor(_POWERS)).sum(1).to(torch.uint8)


def unpack(packed: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """What :func:`pack` has packed, looked up byte by byte in a table of five trits each.

    Args:
        packed: ``(⌈n/5⌉,)`` uint8.
        shape: of the trits, n in all.
        dtype: of the result.

    Raises:
        ValueError: another number of bytes than the shape needs, or a byte that stands for no five trits.
    """
    n = math.prod(shape)
    if packed.dtype != torch.uint8 or packed.dim() != 1 or len(packed) != -(-n // TRITS_PER_BYTE):
        raise ValueError(
            f"{n:,} trits are {-(-n // TRITS_PER_BYTE):,} bytes, not {tuple(packed.shape)} {packed.dtype}"
        )
    if len(packed) and int(packed.max()) >= N_CODES:
        raise ValueError(f"a byte is {int(packed.max())}; five trits are one of 0 … {N_CODES - 1}")
    codes = torch.arange(N_CODES, device=packed.device).unsqueeze(1)
    powers = torch.tensor(_POWERS, device=packed.device)
    table = ((codes // powers) % 3 - 1).to(dtype)  # (243, 5)
    return table.index_select(0, packed.int()).flatten()[:n].view(*shape)
