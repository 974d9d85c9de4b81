"""banked_sparse_attention: see README.md for the algebra."""

from app.ops.banked_sparse_attention.vectorized import banked_sparse_attention

__all__ = ["banked_sparse_attention"]
