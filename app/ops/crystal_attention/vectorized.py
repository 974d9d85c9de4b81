"""Crystallised attention as PyTorch computes it fast; see README.md for the algebra.

Shape suffixes: B batch, H heads, T queries, S keys, d head width, r rank.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from app.ops.crystal_attention import modes
from app.ops.precision import accumulation_dtype

# Queries whose scores are looked at together when the best key is searched: memory stays linear in T.
QUERY_TILE = 512


def decompose_attention(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, scale: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax attention as the value of its top key plus a residual: ``out = v_{i*} + ε``, exactly.

    Args:
        q: ``(B, H, T, d)``, the queries of the last T of S positions.
        k: ``(B, H, S, d)``.
        v: ``(B, H, S, d)``.
        mask: None for a causal one; else bool (True is in sight) or additive, broadcastable to (B, H, T, S),
            causality included.
        scale: positive factor on ``q kᵀ``; 1/√d by default.

    Returns:
        ``index (B, H, T)`` int64, i* = argmax p, the lowest position of equal ones; ``top (B, H, T, d)``, its
        value; ``residual (B, H, T, d)``, ``Σ_i p_i v_i − v_{i*}``.
    """
    index = _top_index(q, k, mask, scale)
    top = _take(v, index)
    return index, top, _attend(q, k, v, mask, scale) - top


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
    """Causal attention reduced to its top key and what a few directions keep of the rest.

    Args:
        q: ``(B, H, T, d)``, the queries of the last T of S positions.
        k: ``(B, H, S, d)``.
        v: ``(B, H, S, d)``.
        mode: ``top1`` v*; ``topk`` softmax over the ``top_k`` largest scores; ``full`` v* + ε, which equals
            softmax attention; ``lowrank`` v* + P Pᵀ ε; ``random`` the same with a random orthonormal basis.
        rank: r, columns of the basis in use, from 1 to d (``lowrank``, ``random``).
        top_k: keys that count, at least 1 (``topk``); of equal scores at the edge any may be taken.
        basis: ``(H, d, r or more)``, orthonormal modes in columns. By default ``random`` draws the one of
            layer 0, see :func:`random_basis`.
        mask: as in :func:`decompose_attention`.
        scale: as in :func:`decompose_attention`.
        dropout: probability with which a softmax weight is dropped; v* never is.
        straight_through: whether the choice of v* passes a gradient to q and k as if it were the softmax,
            ``A = onehot(i*) + p − stopgrad(p)``, ``v* = A V``. ``topk`` with two keys and more learns
            through its own softmax and does not use it.

    Returns:
        ``(B, H, T, d)``.

    Raises:
        ValueError: an argument that the mode needs is missing or out of range.
    """
    modes.check(q, k, v, mode, rank, top_k, basis)
    if mode == "topk" and top_k != 1:
        assert top_k is not None
        return _top_k_softmax(q, k, v, top_k, mask, scale, dropout)
    if mode == "full":
        # v* + ε, in which v* cancels; added and taken away in bf16 it would leave its rounding behind.
        return _attend(q, k, v, mask, scale, dropout)
    top = _take(v, _top_index(q, k, mask, scale))
    through = straight_through and torch.is_grad_enabled()
    if mode in ("top1", "topk"):
        return top + _pass_through(_attend(q, k, v.detach(), mask, scale, dropout)) if through else top
    assert rank is not None
    if basis is None:
        basis = modes.random_basis(v.shape[1], v.shape[-1], rank)
    P = basis[:, :, :rank].to(v)
    narrow = v @ P  # (B, H, S, r): ε is only ever formed in these r directions
    if through:
        # One pass serves the residual and the gradient of the choice.
        mixed = _attend(q, k, torch.cat([narrow, v.detach().to(narrow.dtype)], -1), mask, scale, dropout)
        mixed, soft = mixed[..., :rank], mixed[..., rank:]
        top = top + _pass_through(soft).to(top.dtype)
    else:
        mixed = _attend(q, k, narrow, mask, scale, dropout)
    return top + (mixed - top @ P) @ P.mT


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, dropout: float = 0.0
) -> Tensor:
    """Softmax attention with values of any width."""
    is_causal = mask is None and q.shape[-2] == k.shape[-2]
    added = None if is_causal else modes.additive_mask(q, k, mask)
    return F.scaled_dot_product_attention(q, k, v, added, dropout, is_causal, scale=scale)


@torch.no_grad()
def _top_index(q: Tensor, k: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Position of the largest score, ``(B, H, T)``; a tile of queries at a time, against what it may see."""
    T, S = q.shape[-2], k.shape[-2]
    found = []
    mask = None if mask is None else torch.atleast_2d(mask)
    # In bf16 the products would be rounded before they are compared, and equal scores be common.
    with torch.autocast(q.device.type, enabled=False):
        wide = accumulation_dtype(q)
        q, k = q.to(wide), k.to(wide)
        for start in range(0, T, QUERY_TILE):
            end = min(start + QUERY_TILE, T)
            seen = S - T + end if mask is None else S
            tile, keys = q[:, :, start:end], k[:, :, :seen]
            scores = tile @ keys.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
            rows = mask if mask is None or mask.shape[-2] == 1 else mask[..., start:end, :]
            added = modes.additive_mask(tile, keys, rows)
            found.append((scores if added is None else scores + added).argmax(-1))
    return torch.cat(found, -1)


def _take(v: Tensor, index: Tensor) -> Tensor:
    """Values at positions: ``v (B, H, S, d)``, ``index (B, H, …)`` to ``(B, H, …, d)``.

    As rows of one table, because the gradient of an embedding adds up in one order on every device, which
    that of ``gather`` does not on a GPU.
    """
    B, H, S, d = v.shape
    first = torch.arange(0, B * H * S, S, device=v.device).view(B, H, *[1] * (index.dim() - 2))
    rows = v.reshape(B * H * S, d)
    if v.device.type == "cpu":
        # There the gradient would be added up in the number format of v, and a key that many choose lose digits.
        rows = rows.to(accumulation_dtype(v))
    return F.embedding(index + first, rows).to(v.dtype)


def _pass_through(x: Tensor) -> Tensor:
    """Zero, with the gradient of ``x``."""
    return x - x.detach()


def _top_k_softmax(
    q: Tensor, k: Tensor, v: Tensor, top_k: int, mask: Tensor | None, scale: float | None, dropout: float
) -> Tensor:
    """Softmax over the ``top_k`` largest scores, which are compared unrounded as in :func:`_top_index`."""
    with torch.autocast(q.device.type, enabled=False):
        wide = accumulation_dtype(q)
        scores = q.to(wide) @ k.to(wide).mT * (q.shape[-1] ** -0.5 if scale is None else scale)
        added = modes.additive_mask(scores, k, mask)
        if added is not None:
            scores = scores + added
        best, index = scores.topk(min(top_k, k.shape[-2]), dim=-1)  # (B, H, T, k)
        weights = best.softmax(-1).to(v.dtype)
    weights = F.dropout(weights, dropout) if dropout else weights
    return (weights.unsqueeze(-2) @ _take(v, index)).squeeze(-2)
