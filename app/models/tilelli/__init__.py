"""Tilelli: ternary pathways, one router per block, weight banks."""

from app.models.tilelli.block import TilelliBlock
from app.models.tilelli.network import TilelliLM
from app.models.tilelli.parts import (
    DiagonalSSM,
    SparseCausalAttention,
    TernaryCausalConv1d,
    TernaryFFN,
    TernaryLinear,
)
from app.models.tilelli.routing import BankRouting

__all__ = [
    "BankRouting",
    "DiagonalSSM",
    "SparseCausalAttention",
    "TernaryCausalConv1d",
    "TernaryFFN",
    "TernaryLinear",
    "TilelliBlock",
    "TilelliLM",
]
