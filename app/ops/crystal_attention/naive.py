"""Reference form of crystallised attention: the definition, with every matrix written out.

Shape suffixes: B batch, H heads, T queries, S keys, d head width, r rank.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from app.ops.crystal_attention import modes


def _scores(q: Tensor, k: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    added = modes.additive_mask(q, k, mask)
    return scores if added is None else scores + added


def decompose_attention(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, scale: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`app.ops.crystal_attention.decompose_attention`."""
    p = _scores(q, k, mask, scale).softmax(-1)  # (B, H, T, S)
    index = p.argmax(-1)
    top = F.one_hot(index, k.shape[-2]).to(v.dtype) @ v
    return index, top, p @ v - top


def crystal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mode: modes.Mode,
    rank: int | None = None,
    top_k: int | None = None,
    basis: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    straight_through: bool = False,
) -> Tensor:
    """See :func:`app.ops.crystal_attention.crystal_attention`."""
    modes.check(q, k, v, mode, rank, top_k, basis)
    scores = _scores(q, k, mask, scale)
    if mode == "topk" and top_k != 1:
        assert top_k is not None
        kept = scores.topk(min(top_k, scores.shape[-1]), dim=-1).indices
        out_of_reach = torch.ones_like(scores, dtype=torch.bool).scatter(-1, kept, False)
        return F.dropout(scores.masked_fill(out_of_reach, float("-inf")).softmax(-1), dropout) @ v
    p = scores.softmax(-1)
    choice = F.one_hot(p.argmax(-1), k.shape[-2]).to(v.dtype)
    p = F.dropout(p, dropout)
    if straight_through:
        choice = choice + p - p.detach()
    top = choice @ v
    if mode in ("top1", "topk"):
        return top
    residual = p @ v - top
    if mode == "full":
        return top + residual
    assert rank is not None
    if basis is None:
        basis = modes.random_basis(v.shape[1], v.shape[-1], rank)
    P = basis[:, :, :rank].to(v)  # (H, d, r)
    return top + residual @ P @ P.mT
