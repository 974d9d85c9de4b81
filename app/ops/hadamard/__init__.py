"""hadamard: see README.md for the algebra."""

from app.ops.choice import operator
from app.ops.hadamard import vectorized

hadamard = operator(vectorized.hadamard)

__all__ = ["hadamard"]
