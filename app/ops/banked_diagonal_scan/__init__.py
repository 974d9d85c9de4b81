"""banked_diagonal_scan: see README.md for the algebra."""

from app.ops.banked_diagonal_scan.vectorized import banked_diagonal_scan

__all__ = ["banked_diagonal_scan"]
