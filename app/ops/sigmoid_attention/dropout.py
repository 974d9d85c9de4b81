"""Which attention weights are dropped: a function of a seed and of where a weight stands, the same in every form.

A weight's bits are ``half(row_t ^ column_s)``, with keys of its row and of its column that are mixed from the seed, the
head and the position: a kernel mixes keys by the row and spends two products on a weight, and nothing is kept for the
backward pass. The mixing is Wellons' ``lowbias32`` (public domain, github.com/skeeto/hash-prospector), on int32 numbers
whose products wrap; ``half`` is its middle, since keys are mixed already and a comparison reads the upper bits.
"""

from typing import NamedTuple

import torch
from torch import Tensor

FIRST, SECOND = 0x7FEB352D, 0x846CA68B - 2**32


class Dropout(NamedTuple):
    """What decides about every weight of a call.

    Attributes:
        probability: with which a weight is dropped, in (0, 1); in steps of 2⁻³².
        seed: ``(2,)`` int32 on the device of the weights. Being a tensor, it is another one in each replay of a graph.
    """

    probability: float
    seed: Tensor

    @property
    def threshold(self) -> int:
        """int32: bits below it are dropped."""
        return min(round(self.probability * 2**32), 2**32 - 1) - 2**31

    def is_dropped(self, B: int, H: int, T: int, S: int) -> Tensor:
        """``(B, H, T, S)`` bool."""
        head_BH = torch.arange(B * H, dtype=torch.int32, device=self.seed.device).view(B, H)
        of_rows, of_columns = (
            _mixed(
                _mixed(head_BH ^ word)[..., None] ^ torch.arange(n, dtype=torch.int32, device=head_BH.device)
            )
            for word, n in zip(self.seed, (T, S), strict=True)
        )
        bits = (of_rows[..., :, None] ^ of_columns[..., None, :]) * FIRST
        bits ^= (bits >> 15) & 0x1FFFF
        return bits.mul_(SECOND) < self.threshold


def dropout_of(x: Tensor, probability: float, seed: Tensor | None) -> Dropout | None:
    """For weights on the device of ``x``; None where nothing is dropped.

    Args:
        x: any.
        probability: in [0, 1).
        seed: None to draw one from the device's generator.
    """
    if probability == 0:
        return None
    if seed is None:
        seed = torch.randint(-(2**31), 2**31, (2,), dtype=torch.int32, device=x.device)
    return Dropout(probability, seed)


def dropped_weights(weights: Tensor, probability: float, seed: Tensor | None = None) -> Tensor:
    """Weights ``(B, H, T, S)`` after dropout, see :func:`dropout_of`; those that stay are scaled by 1/(1 − p)."""
    dropout = dropout_of(weights, probability, seed)
    if dropout is None:
        return weights
    B, H, T, S = weights.shape
    return (weights / (1 - probability)).masked_fill(dropout.is_dropped(B, H, T, S), 0.0)


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ ((x >> 16) & 0xFFFF)) * FIRST
    x = (x ^ ((x >> 15) & 0x1FFFF)) * SECOND
    return x ^ ((x >> 16) & 0xFFFF)
