"""crystal_attention: see README.md for the algebra."""

from app.ops.choice import operator
from app.ops.crystal_attention import vectorized
from app.ops.crystal_attention.modes import MODES, Mode, random_basis

crystal_attention = operator(vectorized.crystal_attention)
decompose_attention = operator(vectorized.decompose_attention)

__all__ = ["MODES", "Mode", "crystal_attention", "decompose_attention", "random_basis"]
