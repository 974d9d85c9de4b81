"""pathway_mix: see README.md for the algebra."""

from app.ops.pathway_mix.vectorized import pathway_mix

__all__ = ["pathway_mix"]
