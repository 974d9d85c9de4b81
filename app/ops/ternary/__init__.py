"""ternary: see README.md for the algebra."""

from app.ops.choice import operator
from app.ops.ternary import vectorized
from app.ops.ternary.vectorized import learned_step_trits, trits

ternary = operator(vectorized.ternary)
learned_step_ternary = operator(vectorized.learned_step_ternary)

__all__ = ["learned_step_ternary", "learned_step_trits", "ternary", "trits"]
