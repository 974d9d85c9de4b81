"""banked_sparse_attention: see README.md for the algebra."""

from app.ops.banked_sparse_attention import vectorized
from app.ops.choice import operator

banked_sparse_attention = operator(vectorized.banked_sparse_attention)

__all__ = ["banked_sparse_attention"]
