"""hadamard: see README.md for the algebra."""

from app.ops.hadamard.vectorized import hadamard

__all__ = ["hadamard"]
