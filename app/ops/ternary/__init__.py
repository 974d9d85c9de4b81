"""ternary: see README.md for the algebra."""

from app.ops.ternary.vectorized import learned_step_ternary, learned_step_trits, ternary, trits

__all__ = ["learned_step_ternary", "learned_step_trits", "ternary", "trits"]
