"""Reference form of the banked sparse attention: every bank on every token, one maximum at a time."""

import torch
from torch import Tensor

from app.ops.banks import read_bank


def banked_sparse_attention(
    h: Tensor, query: Tensor, key: Tensor, value: Tensor, bank: Tensor, top_k: int
) -> Tensor:
    """Causal top-k attention; see :func:`app.ops.banked_sparse_attention.banked_sparse_attention`."""
    n_steps = h.shape[1]
    future = torch.ones(n_steps, n_steps, dtype=torch.bool, device=h.device).triu(1)
    outputs = []
    for w_q, w_k, w_v in zip(query, key, value, strict=True):
        q, k, v = h @ w_q.T, h @ w_k.T, h @ w_v.T
        scores = q @ k.transpose(1, 2) / w_q.shape[0] ** 0.5
        scores = scores.masked_fill(future, float("-inf"))
        outputs.append(scores.masked_fill(_dropped(scores, top_k), float("-inf")).softmax(-1) @ v)
    return read_bank(torch.stack(outputs), bank)


def _dropped(scores: Tensor, top_k: int) -> Tensor:
    remaining = scores.detach().clone()
    dropped = torch.ones_like(scores, dtype=torch.bool)
    for _ in range(min(top_k, scores.shape[-1])):
        first_largest = remaining.argmax(-1, keepdim=True)
        dropped.scatter_(-1, first_largest, False)
        remaining.scatter_(-1, first_largest, float("-inf"))
    return dropped
