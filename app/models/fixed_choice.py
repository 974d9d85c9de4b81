"""Choices that no router makes: controls, which tell what a router's choice is worth.

They have the shares that the router's should have, and depend on nothing that is learned.
"""

import math
from typing import Literal

import torch
from torch import Tensor

FixedChoice = Literal["hash", "random", "position"]

_MASK = (1 << 32) - 1


def places(choice: str, idx: Tensor, start: int, layer: int, vocab_size: int) -> Tensor:
    """Where in [0, 1) each token's choice falls, evenly: ``(B, T)`` fp32.

    Args:
        choice: ``hash`` of the token, each layer its own: of all tokens of the vocabulary equally many fall everywhere.
            ``random``: a fixed draw for each position and layer. ``position``: multiples of the golden section, of
            which every stretch is even.
        idx: ``(B, T)`` int64 tokens.
        start: position of the first of them.
        layer: counted from 0.
        vocab_size: of the tokens.
    """
    if choice == "hash":
        place = (idx * _coprime(vocab_size) + layer * (vocab_size // 3 + 1)) % vocab_size
        return (place + 0.5) / vocab_size
    position = torch.arange(start, start + idx.shape[1], device=idx.device)
    if choice == "position":
        place = position * 40503 % (1 << 16) / (1 << 16)
    else:
        place = (_mixed(position + 1 + 0x9E3779B9 * (layer + 1)) >> 8) / (1 << 24)
    return place.float().expand_as(idx).contiguous()


def banks(choice: str, idx: Tensor, start: int, layer: int, vocab_size: int, n_banks: int) -> Tensor:
    """The bank of each token, ``(B, T)`` int64; ``position`` is the position modulo N."""
    if choice == "position":
        position = torch.arange(start, start + idx.shape[1], device=idx.device)
        return (position % n_banks).expand_as(idx)
    return (places(choice, idx, start, layer, vocab_size) * n_banks).long()


def _coprime(n: int) -> int:
    """A multiplier that permutes the residues modulo n and puts neighbours far apart."""
    return next(a for a in range(max(1, round(0.618 * n)), 2 * n + 2) if math.gcd(a, n) == 1)


def _mixed(x: Tensor) -> Tensor:
    """32 well-mixed bits of each integer."""
    x = x & _MASK
    for _ in range(2):
        x = ((x >> 16) ^ x) * 0x45D9F3B & _MASK
    return (x >> 16) ^ x
