"""pathway_mix: see README.md for the algebra."""

from app.ops.choice import operator
from app.ops.pathway_mix import vectorized

pathway_mix = operator(vectorized.pathway_mix)

__all__ = ["pathway_mix"]
