"""routing: see README.md for the algebra."""

from app.ops.choice import operator
from app.ops.routing import naive

routing = operator(naive.routing)

__all__ = ["routing"]
