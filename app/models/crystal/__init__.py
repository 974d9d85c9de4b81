"""Attention as the value of its top key plus a residual: taken apart, measured, exchanged and trained."""

from app.models.crystal.attention import CrystalAttention, CrystalRecord, ExchangedAttention
from app.models.crystal.basis import ResidualBasis, ResidualMoments, weights_digest
from app.models.crystal.network import CrystalGPT
from app.models.crystal.patch import CrystalPatch, attention_layers, calibrate, deepest_quarter, head_shape
from app.ops.crystal_attention import Mode, crystal_attention, decompose_attention, random_basis

__all__ = [
    "CrystalAttention",
    "CrystalGPT",
    "CrystalPatch",
    "CrystalRecord",
    "ExchangedAttention",
    "Mode",
    "ResidualBasis",
    "ResidualMoments",
    "attention_layers",
    "calibrate",
    "crystal_attention",
    "decompose_attention",
    "deepest_quarter",
    "head_shape",
    "random_basis",
    "weights_digest",
]
