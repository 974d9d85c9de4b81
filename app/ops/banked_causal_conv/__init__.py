"""banked_causal_conv: see README.md for the algebra."""

from app.ops.banked_causal_conv.vectorized import banked_causal_conv

__all__ = ["banked_causal_conv"]
