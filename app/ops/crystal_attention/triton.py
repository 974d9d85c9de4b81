# mypy: allow-untyped-defs
"""Form of crystallised attention for a GPU: scores are computed once, for the choice, the mixture and v*.

Shape suffixes: B batch, H heads, T queries, S keys, d head width, r rank.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from app.ops.attention_kernels import (
    WIDEST_HEAD,
    head_of,
    heads_of_tokens,
    rows_of,
    rows_together,
    store_rows,
    strides,
    tile,
)
from app.ops.crystal_attention import modes, vectorized
from app.ops.precision import matmul_dtype

LOG2_E = 1.4426950408889634
# Keys that a query can hold on to in registers.
MOST_KEYS = 8


class _TopAndMean(torch.autograd.Function):
    """``Σ p v`` and ``v_{i*}``, each ``(B, H, T, d)``."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, straight_through: bool
    ) -> tuple[Tensor, Tensor]:
        q, k, v = (rows_together(x) for x in (q, k, v))
        B, H, T, d = q.shape
        mean, top = heads_of_tokens(q, T), heads_of_tokens(q, T)
        lengths = torch.empty(B * H, T, dtype=torch.float32, device=q.device)
        index = torch.empty(B * H, T, dtype=torch.int32, device=q.device)
        sizes, shape = (H, T, k.shape[2], d), tile(d, q.dtype)
        _forward[(B * H, triton.cdiv(T, shape["QUERIES"]))](
            q, k, v, mean, top, lengths, index, *sizes, *strides(q, k, v, mean, top), scale * LOG2_E, **shape
        )
        ctx.save_for_backward(q, k, v, mean, lengths, index)
        ctx.scale, ctx.straight_through = scale, straight_through
        return mean, top

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mean, lengths, index = ctx.saved_tensors
        d_mean, d_top = (rows_together(g.to(q.dtype)) for g in gradients)
        (B, H, T, d), S = q.shape, k.shape[2]
        # Scores get the gradient of the mean, and of v* as if the softmax had chosen it.
        through = d_mean + d_top if ctx.straight_through else d_mean
        dq, dk, dv = heads_of_tokens(q, T), heads_of_tokens(q, S), heads_of_tokens(q, S)
        inner = torch.empty_like(lengths)
        sizes, scales, shape = (H, T, S, d), (ctx.scale * LOG2_E, ctx.scale), tile(d, q.dtype)
        _query_backward[(B * H, triton.cdiv(T, shape["QUERIES"]))](
            q, k, v, mean, through, dq, lengths, inner,
            *sizes, *strides(q, k, v, mean, through, dq), *scales, **shape,
        )  # fmt: skip
        _key_backward[(B * H, triton.cdiv(S, shape["KEYS"]))](
            q, k, v, d_mean, d_top, through, dk, dv, lengths, inner, index,
            *sizes, *strides(q, k, v, d_mean, d_top, through, dk, dv), *scales, **shape,
        )  # fmt: skip
        return dq, dk, dv, None, None


class _TopK(torch.autograd.Function):
    """``Σ p v`` over the ``top_k`` largest scores, ``(B, H, T, d)``."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, top_k: int) -> Tensor:
        q, k, v = (rows_together(x) for x in (q, k, v))
        B, H, T, d = q.shape
        y = heads_of_tokens(q, T)
        weights = torch.empty(B * H, T, top_k, dtype=torch.float32, device=q.device)
        index = torch.empty(B * H, T, top_k, dtype=torch.int32, device=q.device)
        sizes, shape = (H, T, k.shape[2], d), tile(d, q.dtype)
        _top_k_forward[(B * H, triton.cdiv(T, shape["QUERIES"]))](
            q, k, v, y, weights, index, *sizes, *strides(q, k, v, y), scale * LOG2_E, top_k, **shape
        )
        ctx.save_for_backward(q, k, v, weights, index)
        ctx.scale = scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, index = ctx.saved_tensors
        grad = rows_together(gradients[0].to(q.dtype))
        (B, H, T, d), S, top_k = q.shape, k.shape[2], weights.shape[-1]
        dq, dk, dv = heads_of_tokens(q, T), heads_of_tokens(q, S), heads_of_tokens(q, S)
        d_scores = torch.empty_like(weights)
        sizes, shape = (H, T, S, d), tile(d, q.dtype)
        _top_k_query_backward[(B * H, triton.cdiv(T, shape["QUERIES"]))](
            k, v, grad, dq, weights, d_scores, index,
            *sizes, *strides(k, v, grad, dq), ctx.scale, top_k, shape["QUERIES"], shape["HEAD"],
        )  # fmt: skip
        _top_k_key_backward[(B * H, triton.cdiv(S, shape["KEYS"]))](
            q,
            grad,
            dk,
            dv,
            weights,
            d_scores,
            index,
            *sizes,
            *strides(q, grad, dk, dv),
            ctx.scale,
            top_k,
            **shape,
        )
        return dq, dk, dv, None, None


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
    """Attention reduced to its top key; see :func:`app.ops.crystal_attention.crystal_attention`.

    Left to PyTorch's operations: ``full``, ``topk`` with more than 8 keys, a mask of one's own, dropout, heads wider
    than 128, and numbers that autocast would round before they are compared.
    """
    modes.check(q, k, v, mode, rank, top_k, basis)
    is_plain = mask is None and dropout == 0 and q.shape[-1] <= WIDEST_HEAD
    is_known = mode in ("lowrank", "random", "top1") or (
        top_k is not None and mode == "topk" and top_k <= MOST_KEYS
    )
    if not (is_plain and is_known and q.dtype == k.dtype == v.dtype == matmul_dtype(q)):
        return vectorized.crystal_attention(
            q,
            k,
            v,
            mode,
            rank,
            top_k,
            basis,
            mask=mask,
            scale=scale,
            dropout=dropout,
            straight_through=straight_through,
        )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if top_k is not None and mode == "topk" and top_k > 1:
        with torch.cuda.device_of(q):
            kept: Tensor = _TopK.apply(q, k, v, scale, top_k)
        return kept
    with torch.cuda.device_of(q):
        mean, top = _TopAndMean.apply(q, k, v, scale, straight_through)
    if mode in ("top1", "topk"):
        return top
    assert rank is not None
    if basis is None:
        basis = modes.random_basis(v.shape[1], v.shape[-1], rank)
    P = basis[:, :, :rank].to(v)
    # ε lies beside v* in the kernel's output, so that it costs two narrow products and no attention of its own.
    return top + (mean - top) @ P @ P.mT


@triton.jit
def _forward(
    q, k, v, mean, top, lengths, index, n_heads, n_queries, n_keys, d_head,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, m_b, m_h, m_t, top_b, top_h, top_t, in_twos,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, HEAD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # Late queries, which have the longest past, begin first.
    block = tl.num_programs(1) - 1 - tl.program_id(1)
    q, k, v = head_of(q, n_heads, q_b, q_h), head_of(k, n_heads, k_b, k_h), head_of(v, n_heads, v_b, v_h)
    mean, top = head_of(mean, n_heads, m_b, m_h), head_of(top, n_heads, top_b, top_h)
    t = block * QUERIES + tl.arange(0, QUERIES)
    position = t + n_keys - n_queries
    q_tile = rows_of(q, t, n_queries, q_t, d_head, HEAD)
    total = tl.full((QUERIES, HEAD), 0.0, tl.float32)
    largest = tl.full((QUERIES,), float("-inf"), tl.float32)
    length = tl.full((QUERIES,), 0.0, tl.float32)
    best = tl.full((QUERIES,), 0, tl.int32)
    for start in range(0, tl.minimum(n_keys, (block + 1) * QUERIES + n_keys - n_queries), KEYS):
        s = start + tl.arange(0, KEYS)
        k_tile = rows_of(k, s, n_keys, k_t, d_head, HEAD)
        score = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * in_twos
        sees = (s[None, :] <= position[:, None]) & (s < n_keys)[None, :]
        score = tl.where(sees, score, float("-inf"))
        of_tile = tl.max(score, 1)
        # The first of equal ones, in a tile and among tiles.
        first = tl.min(tl.where(score == of_tile[:, None], s[None, :], n_keys), 1)
        best = tl.where(of_tile > largest, first, best)
        now = tl.maximum(largest, of_tile)
        shrink, weight = tl.exp2(largest - now), tl.exp2(score - now[:, None])
        length = length * shrink + tl.sum(weight, 1)
        v_tile = rows_of(v, s, n_keys, v_t, d_head, HEAD)
        total = tl.dot(weight.to(v_tile.dtype), v_tile, total * shrink[:, None], input_precision=PRECISION)
        largest = now
    store_rows(mean, total / length[:, None], t, n_queries, m_t, d_head, HEAD)
    store_rows(top, rows_of(v, best, n_keys, v_t, d_head, HEAD), t, n_queries, top_t, d_head, HEAD)
    at = tl.program_id(0).to(tl.int64) * n_queries + t
    tl.store(lengths + at, largest + tl.log2(length), mask=t < n_queries)
    tl.store(index + at, best, mask=t < n_queries)


@triton.jit
def _query_backward(
    q, k, v, mean, grad, dq, lengths, inner, n_heads, n_queries, n_keys, d_head,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, m_b, m_h, m_t, g_b, g_h, g_t, dq_b, dq_h, dq_t, in_twos, scale,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, HEAD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of queries, and what their keys' gradients need of each."""
    block = tl.num_programs(1) - 1 - tl.program_id(1)
    q, k, v = head_of(q, n_heads, q_b, q_h), head_of(k, n_heads, k_b, k_h), head_of(v, n_heads, v_b, v_h)
    mean, grad = head_of(mean, n_heads, m_b, m_h), head_of(grad, n_heads, g_b, g_h)
    dq = head_of(dq, n_heads, dq_b, dq_h)
    t = block * QUERIES + tl.arange(0, QUERIES)
    position = t + n_keys - n_queries
    q_tile = rows_of(q, t, n_queries, q_t, d_head, HEAD)
    g_tile = rows_of(grad, t, n_queries, g_t, d_head, HEAD)
    at = tl.program_id(0).to(tl.int64) * n_queries + t
    length = tl.load(lengths + at, mask=t < n_queries, other=0.0)
    product = g_tile.to(tl.float32) * rows_of(mean, t, n_queries, m_t, d_head, HEAD).to(tl.float32)
    inside = tl.sum(product, 1)
    tl.store(inner + at, inside, mask=t < n_queries)
    total = tl.full((QUERIES, HEAD), 0.0, tl.float32)
    for start in range(0, tl.minimum(n_keys, (block + 1) * QUERIES + n_keys - n_queries), KEYS):
        s = start + tl.arange(0, KEYS)
        k_tile = rows_of(k, s, n_keys, k_t, d_head, HEAD)
        v_tile = rows_of(v, s, n_keys, v_t, d_head, HEAD)
        score = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * in_twos
        sees = (s[None, :] <= position[:, None]) & (s < n_keys)[None, :] & (t < n_queries)[:, None]
        weight = tl.where(sees, tl.exp2(score - length[:, None]), 0.0)
        d_weight = tl.dot(g_tile, tl.trans(v_tile), input_precision=PRECISION)
        d_score = weight * (d_weight - inside[:, None])
        total = tl.dot(d_score.to(k_tile.dtype), k_tile, total, input_precision=PRECISION)
    store_rows(dq, total * scale, t, n_queries, dq_t, d_head, HEAD)


@triton.jit
def _key_backward(
    q, k, v, d_mean, d_top, grad, dk, dv, lengths, inner, index, n_heads, n_queries, n_keys, d_head,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, m_b, m_h, m_t, top_b, top_h, top_t, g_b, g_h, g_t,
    dk_b, dk_h, dk_t, dv_b, dv_h, dv_t, in_twos, scale,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, HEAD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys and values, over the queries that see it, in their order."""
    block = tl.program_id(1)
    q, k, v = head_of(q, n_heads, q_b, q_h), head_of(k, n_heads, k_b, k_h), head_of(v, n_heads, v_b, v_h)
    d_mean, d_top = head_of(d_mean, n_heads, m_b, m_h), head_of(d_top, n_heads, top_b, top_h)
    grad = head_of(grad, n_heads, g_b, g_h)
    dk, dv = head_of(dk, n_heads, dk_b, dk_h), head_of(dv, n_heads, dv_b, dv_h)
    s = block * KEYS + tl.arange(0, KEYS)
    k_tile = rows_of(k, s, n_keys, k_t, d_head, HEAD)
    v_tile = rows_of(v, s, n_keys, v_t, d_head, HEAD)
    k_total = tl.full((KEYS, HEAD), 0.0, tl.float32)
    v_total = tl.full((KEYS, HEAD), 0.0, tl.float32)
    of_head = tl.program_id(0).to(tl.int64) * n_queries
    begin = tl.maximum(0, block * KEYS - (n_keys - n_queries))
    # What values get as the top ones of queries: a product, so in one order, without atomics; in a loop of its own, for
    # its tiles do not fit into registers beside those of the other.
    for start in range(begin, n_queries, QUERIES):
        t = start + tl.arange(0, QUERIES)
        chosen = tl.load(index + of_head + t, mask=t < n_queries, other=-1)
        top_tile = rows_of(d_top, t, n_queries, top_t, d_head, HEAD)
        is_top = tl.where(s[:, None] == chosen[None, :], 1.0, 0.0).to(top_tile.dtype)
        v_total = tl.dot(is_top, top_tile, v_total, input_precision=PRECISION)
    for start in range(begin, n_queries, QUERIES):
        t = start + tl.arange(0, QUERIES)
        sees = (s[:, None] <= (t + n_keys - n_queries)[None, :]) & (t < n_queries)[None, :]
        q_tile = rows_of(q, t, n_queries, q_t, d_head, HEAD)
        length = tl.load(lengths + of_head + t, mask=t < n_queries, other=0.0)
        score = tl.dot(k_tile, tl.trans(q_tile), input_precision=PRECISION) * in_twos
        weight = tl.where(sees, tl.exp2(score - length[None, :]), 0.0)
        m_tile = rows_of(d_mean, t, n_queries, m_t, d_head, HEAD)
        v_total = tl.dot(weight.to(m_tile.dtype), m_tile, v_total, input_precision=PRECISION)
        g_tile = rows_of(grad, t, n_queries, g_t, d_head, HEAD)
        d_weight = tl.dot(v_tile, tl.trans(g_tile), input_precision=PRECISION)
        inside = tl.load(inner + of_head + t, mask=t < n_queries, other=0.0)
        d_score = weight * (d_weight - inside[None, :])
        k_total = tl.dot(d_score.to(q_tile.dtype), q_tile, k_total, input_precision=PRECISION)
    store_rows(dk, k_total * scale, s, n_keys, dk_t, d_head, HEAD)
    store_rows(dv, v_total, s, n_keys, dv_t, d_head, HEAD)


@triton.jit
def _top_k_forward(
    q, k, v, y, weights, index, n_heads, n_queries, n_keys, d_head,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, y_b, y_h, y_t, in_twos, TOP_K: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, HEAD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    block = tl.num_programs(1) - 1 - tl.program_id(1)
    q, k, v = head_of(q, n_heads, q_b, q_h), head_of(k, n_heads, k_b, k_h), head_of(v, n_heads, v_b, v_h)
    y = head_of(y, n_heads, y_b, y_h)
    t = block * QUERIES + tl.arange(0, QUERIES)
    position = t + n_keys - n_queries
    q_tile = rows_of(q, t, n_queries, q_t, d_head, HEAD)
    # The largest scores so far, in falling order, and where they are.
    best = ()
    place = ()
    for _ in tl.static_range(TOP_K):
        best = best + (tl.full((QUERIES,), float("-inf"), tl.float32),)
        place = place + (tl.full((QUERIES,), 0, tl.int32),)
    for start in range(0, tl.minimum(n_keys, (block + 1) * QUERIES + n_keys - n_queries), KEYS):
        s = start + tl.arange(0, KEYS)
        k_tile = rows_of(k, s, n_keys, k_t, d_head, HEAD)
        score = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * in_twos
        sees = (s[None, :] <= position[:, None]) & (s < n_keys)[None, :]
        score = tl.where(sees, score, float("-inf"))
        for _ in tl.static_range(TOP_K):
            value = tl.max(score, 1)
            first = tl.min(tl.where(score == value[:, None], s[None, :], n_keys), 1)
            score = tl.where(s[None, :] == first[:, None], float("-inf"), score)
            new_best = ()
            new_place = ()
            for j in tl.static_range(TOP_K):
                is_larger = value > best[j]
                new_best = new_best + (tl.where(is_larger, value, best[j]),)
                new_place = new_place + (tl.where(is_larger, first, place[j]),)
                value, first = tl.where(is_larger, best[j], value), tl.where(is_larger, place[j], first)
            best, place = new_best, new_place
    length = tl.full((QUERIES,), 0.0, tl.float32)
    for j in tl.static_range(TOP_K):
        length += tl.exp2(best[j] - best[0])  # type: ignore[misc]
    at = (tl.program_id(0).to(tl.int64) * n_queries + t) * TOP_K
    total = tl.full((QUERIES, HEAD), 0.0, tl.float32)
    for j in tl.static_range(TOP_K):
        weight = tl.exp2(best[j] - best[0]) / length  # type: ignore[misc]
        total += weight[:, None] * rows_of(v, place[j], n_keys, v_t, d_head, HEAD).to(tl.float32)
        tl.store(weights + at + j, weight, mask=t < n_queries)
        tl.store(index + at + j, place[j], mask=t < n_queries)
    store_rows(y, total, t, n_queries, y_t, d_head, HEAD)


@triton.jit
def _top_k_query_backward(
    k, v, grad, dq, weights, d_scores, index, n_heads, n_queries, n_keys, d_head,
    k_b, k_h, k_t, v_b, v_h, v_t, g_b, g_h, g_t, dq_b, dq_h, dq_t, scale, TOP_K: tl.constexpr,
    QUERIES: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of queries, and of the scores that each keeps."""
    k, v = head_of(k, n_heads, k_b, k_h), head_of(v, n_heads, v_b, v_h)
    grad, dq = head_of(grad, n_heads, g_b, g_h), head_of(dq, n_heads, dq_b, dq_h)
    t = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    g_tile = rows_of(grad, t, n_queries, g_t, d_head, HEAD).to(tl.float32)
    at = (tl.program_id(0).to(tl.int64) * n_queries + t) * TOP_K
    d_weights = ()
    inside = tl.full((QUERIES,), 0.0, tl.float32)
    for j in tl.static_range(TOP_K):
        place = tl.load(index + at + j, mask=t < n_queries, other=0)
        weight = tl.load(weights + at + j, mask=t < n_queries, other=0.0)
        d_weight = tl.sum(g_tile * rows_of(v, place, n_keys, v_t, d_head, HEAD).to(tl.float32), 1)
        inside += weight * d_weight
        d_weights = d_weights + (d_weight,)
    total = tl.full((QUERIES, HEAD), 0.0, tl.float32)
    for j in tl.static_range(TOP_K):
        place = tl.load(index + at + j, mask=t < n_queries, other=0)
        d_score = tl.load(weights + at + j, mask=t < n_queries, other=0.0) * (d_weights[j] - inside)
        total += d_score[:, None] * rows_of(k, place, n_keys, k_t, d_head, HEAD).to(tl.float32)
        tl.store(d_scores + at + j, d_score, mask=t < n_queries)
    store_rows(dq, total * scale, t, n_queries, dq_t, d_head, HEAD)


@triton.jit
def _top_k_key_backward(
    q, grad, dk, dv, weights, d_scores, index, n_heads, n_queries, n_keys, d_head,
    q_b, q_h, q_t, g_b, g_h, g_t, dk_b, dk_h, dk_t, dv_b, dv_h, dv_t, scale, TOP_K: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, HEAD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys and values: products with the few weights that queries keep, in their order."""
    block = tl.program_id(1)
    q, grad = head_of(q, n_heads, q_b, q_h), head_of(grad, n_heads, g_b, g_h)
    dk, dv = head_of(dk, n_heads, dk_b, dk_h), head_of(dv, n_heads, dv_b, dv_h)
    s = block * KEYS + tl.arange(0, KEYS)
    begin = tl.maximum(0, block * KEYS - (n_keys - n_queries))
    first = tl.program_id(0).to(tl.int64) * n_queries
    # A loop each, for the tiles of both do not fit into registers beside each other.
    total = tl.full((KEYS, HEAD), 0.0, tl.float32)
    for start in range(begin, n_queries, QUERIES):
        t = start + tl.arange(0, QUERIES)
        kept = _kept_of(weights, index, first, t, s, n_queries, TOP_K, QUERIES, KEYS)
        g_tile = rows_of(grad, t, n_queries, g_t, d_head, HEAD)
        total = tl.dot(kept.to(g_tile.dtype), g_tile, total, input_precision=PRECISION)
    store_rows(dv, total, s, n_keys, dv_t, d_head, HEAD)
    total = tl.full((KEYS, HEAD), 0.0, tl.float32)
    for start in range(begin, n_queries, QUERIES):
        t = start + tl.arange(0, QUERIES)
        kept = _kept_of(d_scores, index, first, t, s, n_queries, TOP_K, QUERIES, KEYS)
        q_tile = rows_of(q, t, n_queries, q_t, d_head, HEAD)
        total = tl.dot(kept.to(q_tile.dtype), q_tile, total, input_precision=PRECISION)
    store_rows(dk, total * scale, s, n_keys, dk_t, d_head, HEAD)


@triton.jit
def _kept_of(
    values, index, first, t, s, n_queries, TOP_K: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr
):
    """What queries t keep of keys s, ``(KEYS, QUERIES)``, zeros elsewhere."""
    at = (first + t) * TOP_K
    total = tl.full((KEYS, QUERIES), 0.0, tl.float32)
    for j in tl.static_range(TOP_K):
        is_kept = s[:, None] == tl.load(index + at + j, mask=t < n_queries, other=-1)[None, :]
        value = tl.load(values + at + j, mask=t < n_queries, other=0.0)
        # Added: a query that sees fewer keys has its first place once more, with zero.
        total += tl.where(is_kept, value[None, :], 0.0)
    return total
