"""crystal_attention: see README.md for the algebra."""

from app.ops.crystal_attention.modes import MODES, Mode, random_basis
from app.ops.crystal_attention.vectorized import crystal_attention, decompose_attention

__all__ = ["MODES", "Mode", "crystal_attention", "decompose_attention", "random_basis"]
