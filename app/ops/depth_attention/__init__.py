"""depth_attention: see README.md for the algebra."""

from app.ops.choice import operator
from app.ops.depth_attention import naive

depth_attention = operator(naive.depth_attention)

__all__ = ["depth_attention"]
