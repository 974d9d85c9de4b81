"""embedding: see README.md for how its gradient is added up."""

from app.ops.choice import operator
from app.ops.embedding import vectorized

embedding = operator(vectorized.embedding)

__all__ = ["embedding"]
