"""second_pass: see README.md for the algebra."""

from app.ops.choice import operator
from app.ops.second_pass import naive

second_pass = operator(naive.second_pass)
adapter_pass = operator(naive.adapter_pass)

__all__ = ["adapter_pass", "second_pass"]
