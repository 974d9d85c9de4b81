"""deviation: see README.md for the algebra."""

from app.ops.choice import operator
from app.ops.deviation import naive

deviation = operator(naive.deviation)

__all__ = ["deviation"]
