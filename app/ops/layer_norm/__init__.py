"""layer_norm: see README.md for the algebra."""

from app.ops.choice import operator
from app.ops.layer_norm import vectorized

layer_norm = operator(vectorized.layer_norm)

__all__ = ["layer_norm"]
