"""banked_diagonal_scan: see README.md for the algebra."""

from app.ops.banked_diagonal_scan import vectorized
from app.ops.choice import operator

banked_diagonal_scan = operator(vectorized.banked_diagonal_scan)

__all__ = ["banked_diagonal_scan"]
