"""banked_ffn: see README.md for the algebra."""

from app.ops.banked_ffn.vectorized import banked_ffn

__all__ = ["banked_ffn"]
