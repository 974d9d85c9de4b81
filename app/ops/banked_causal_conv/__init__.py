"""banked_causal_conv: see README.md for the algebra."""

from app.ops.banked_causal_conv import vectorized
from app.ops.choice import operator

banked_causal_conv = operator(vectorized.banked_causal_conv)

__all__ = ["banked_causal_conv"]
