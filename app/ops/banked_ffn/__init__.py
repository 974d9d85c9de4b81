"""banked_ffn: see README.md for the algebra."""

from app.ops.banked_ffn import vectorized
from app.ops.choice import operator

banked_ffn = operator(vectorized.banked_ffn)

__all__ = ["banked_ffn"]
