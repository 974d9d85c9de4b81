"""ternary: see README.md for the algebra."""

from app.ops.ternary.vectorized import ternary

__all__ = ["ternary"]
