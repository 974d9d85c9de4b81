"""Reference form of attention over depth.

Shape suffixes: n earlier outputs, B batch, T sequence, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def depth_attention(asked: Tensor, z: Tensor, history: Sequence[Tensor]) -> Tensor:
    """``z + Σ α_i h_i`` with ``α = softmax_i(asked · h_i)``, each token over its own earlier outputs.

    Args:
        asked: ``(B, T, D)``, what is looked for, scaled already.
        z: ``(B, T, D)``.
        history: n ≥ 1 tensors ``(B, T, D)``.

    Returns:
        ``(B, T, D)``, in the widest dtype of them all.
    """
    scores = torch.stack([(asked * h).sum(-1) for h in history])  # (n, B, T)
    mixed = z
    for alpha, h in zip(scores.softmax(0), history, strict=True):
        mixed = mixed + alpha.unsqueeze(-1) * h
    return mixed
