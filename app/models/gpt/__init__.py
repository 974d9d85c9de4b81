"""The common baseline: a GPT with softmax attention."""

from app.models.gpt.network import GPT

__all__ = ["GPT"]
