# mypy: allow-untyped-defs
"""Attention of tokens with new queries, keys and values among the others as they were.

A query sees the first pass's keys before its position and its own new key, with which its running maximum begins.
Queries of a window stand side by side, ascending, so that a tile of keys knows the first that sees it by its rank.

Shape suffixes: B batch, H heads, T sequence, S tokens (B·T), D width, d head width.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from app.ops.attention_kernels import (
    head_of,
    heads_of_tokens,
    rows_of,
    rows_together,
    store_rows,
    strides,
    tile,
)
from app.ops.second_pass.rows import Takers

LOG2_E = tl.constexpr(1.4426950408889634)


def attention(qkv: Tensor, keys: Tensor, values: Tensor, rows: Takers) -> tuple[Tensor, Tensor]:
    """What the takers attend to, ``(S, D)`` by place, and the logarithm to base 2 of their sums, ``(H, S)``.

    Args:
        qkv: ``(S, 3D)``, new queries, keys and values by place.
        keys: ``(B, H, T, d)`` of the first pass, as the values.
        values: the same.
        rows: whose.
    """
    B, H, T, d = keys.shape
    S, D = qkv.shape[0], H * d
    y = qkv.new_empty(S, D)
    length = torch.empty(H, S, dtype=torch.float32, device=qkv.device)
    shape = tile(d, qkv.dtype)
    _forward[(B * H, triton.cdiv(T, shape["QUERIES"]))](
        qkv, keys, values, y, length, rows.order, rows.starts, H, T, S, D, d, *strides(keys, values), d**-0.5, **shape
    )  # fmt: skip
    return y, length


def attention_backward(
    grad: Tensor, qkv: Tensor, keys: Tensor, values: Tensor, y: Tensor, length: Tensor, rows: Takers
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``qkv`` by place, and of keys and values."""
    B, H, T, d = keys.shape
    S, D = y.shape
    shape: dict[str, Any] = tile(d, qkv.dtype)
    d_qkv, level = torch.empty_like(qkv), torch.empty_like(length)
    sizes = H, T, S, D, d
    _query_backward[(B * H, triton.cdiv(T, shape["QUERIES"]))](
        qkv, keys, values, y, grad, length, level, d_qkv, rows.order, rows.starts, *sizes, *strides(keys, values),
        d**-0.5, **shape,
    )  # fmt: skip
    d_keys, d_values = (heads_of_tokens(keys, T) for _ in range(2))
    _key_backward[(B * H, triton.cdiv(T, shape["KEYS"]))](
        qkv, keys, values, grad, length, level, d_keys, d_values, rows.order, rows.rank, rows.starts, *sizes,
        *strides(keys, values, d_keys, d_values), d**-0.5, **shape,
    )  # fmt: skip
    return d_qkv, d_keys, d_values


def readable(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Keys or values of the first pass, as the kernels read them."""
    return rows_together(x.to(dtype))


@triton.jit
def _tile_of_queries(order, starts, n_heads, T, QUERIES: tl.constexpr):
    """Places of a tile of one window's takers, their end, and positions in the window."""
    window = tl.program_id(0) // n_heads
    last = tl.load(starts + window + 1)
    # Late queries, which have the longest past, begin first.
    first = tl.load(starts + window) + (tl.num_programs(1) - 1 - tl.program_id(1)) * QUERIES
    p = first + tl.arange(0, QUERIES)
    position = tl.load(order + p, mask=p < last, other=0) - window * T
    return first, p, last, tl.where(p < last, position, 0)


@triton.jit
def _forward(
    qkv, keys, values, y, length, order, starts, n_heads, T, S, D, d_head, k_b, k_h, k_t, v_b, v_h, v_t, scale,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, HEAD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    first, p, last, position = _tile_of_queries(order, starts, n_heads, T, QUERIES)
    if first >= last:
        return
    head = tl.program_id(0) % n_heads
    keys, values = head_of(keys, n_heads, k_b, k_h), head_of(values, n_heads, v_b, v_h)
    own = qkv + head * d_head
    q_tile = rows_of(own, p, last, 3 * D, d_head, HEAD)
    k_own = rows_of(own + D, p, last, 3 * D, d_head, HEAD)
    in_twos = scale * LOG2_E
    largest = tl.sum(q_tile.to(tl.float32) * k_own.to(tl.float32), 1) * in_twos
    total = rows_of(own + 2 * D, p, last, 3 * D, d_head, HEAD).to(tl.float32)
    weights = tl.full((QUERIES,), 1.0, tl.float32)
    for start in range(0, tl.max(position, 0), KEYS):
        s = start + tl.arange(0, KEYS)
        k_tile = rows_of(keys, s, T, k_t, d_head, HEAD)
        score = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * in_twos
        score = tl.where(s[None, :] < position[:, None], score, float("-inf"))
        now = tl.maximum(largest, tl.max(score, 1))
        shrink, weight = tl.exp2(largest - now), tl.exp2(score - now[:, None])
        weights = weights * shrink + tl.sum(weight, 1)
        v_tile = rows_of(values, s, T, v_t, d_head, HEAD)
        total = tl.dot(weight.to(v_tile.dtype), v_tile, total * shrink[:, None], input_precision=PRECISION)
        largest = now
    store_rows(y + head * d_head, total / weights[:, None], p, last, D, d_head, HEAD)
    tl.store(length + head.to(tl.int64) * S + p, largest + tl.log2(weights), mask=p < last)


@triton.jit
def _query_backward(
    qkv, keys, values, y, grad, length, level_of, d_qkv, order, starts, n_heads, T, S, D, d_head,
    k_b, k_h, k_t, v_b, v_h, v_t, scale,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, HEAD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of queries and of their own keys and values."""
    first, p, last, position = _tile_of_queries(order, starts, n_heads, T, QUERIES)
    if first >= last:
        return
    head = tl.program_id(0) % n_heads
    keys, values = head_of(keys, n_heads, k_b, k_h), head_of(values, n_heads, v_b, v_h)
    own = qkv + head * d_head
    q_tile = rows_of(own, p, last, 3 * D, d_head, HEAD)
    k_own = rows_of(own + D, p, last, 3 * D, d_head, HEAD).to(tl.float32)
    v_own = rows_of(own + 2 * D, p, last, 3 * D, d_head, HEAD).to(tl.float32)
    g_tile = rows_of(grad + head * d_head, p, last, D, d_head, HEAD)
    g = g_tile.to(tl.float32)
    in_twos = scale * LOG2_E
    of_sum = tl.load(length + head.to(tl.int64) * S + p, mask=p < last, other=0.0)
    level = tl.sum(g * rows_of(y + head * d_head, p, last, D, d_head, HEAD).to(tl.float32), 1)
    tl.store(level_of + head.to(tl.int64) * S + p, level, mask=p < last)
    share = tl.exp2(tl.sum(q_tile.to(tl.float32) * k_own, 1) * in_twos - of_sum)
    d_own = share * (tl.sum(g * v_own, 1) - level) * scale
    to = d_qkv + head * d_head
    store_rows(to + D, d_own[:, None] * q_tile.to(tl.float32), p, last, 3 * D, d_head, HEAD)
    store_rows(to + 2 * D, share[:, None] * g, p, last, 3 * D, d_head, HEAD)
    total = tl.full((QUERIES, HEAD), 0.0, tl.float32)
    for start in range(0, tl.max(position, 0), KEYS):
        s = start + tl.arange(0, KEYS)
        k_tile = rows_of(keys, s, T, k_t, d_head, HEAD)
        v_tile = rows_of(values, s, T, v_t, d_head, HEAD)
        score = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * in_twos
        d_weight = tl.dot(g_tile, tl.trans(v_tile), input_precision=PRECISION)
        weight = tl.where(s[None, :] < position[:, None], tl.exp2(score - of_sum[:, None]), 0.0)
        d_score = weight * (d_weight - level[:, None])
        total = tl.dot(d_score.to(k_tile.dtype), k_tile, total, input_precision=PRECISION)
    store_rows(to, total * scale + d_own[:, None] * k_own, p, last, 3 * D, d_head, HEAD)


@triton.jit
def _key_backward(
    qkv, keys, values, grad, length, level_of, d_keys, d_values, order, rank, starts, n_heads, T, S, D, d_head,
    k_b, k_h, k_t, v_b, v_h, v_t, dk_b, dk_h, dk_t, dv_b, dv_h, dv_t, scale,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, HEAD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of the first pass's keys and values, over the takers that see it, in their order."""
    window, head = tl.program_id(0) // n_heads, tl.program_id(0) % n_heads
    keys, values = head_of(keys, n_heads, k_b, k_h), head_of(values, n_heads, v_b, v_h)
    d_keys, d_values = head_of(d_keys, n_heads, dk_b, dk_h), head_of(d_values, n_heads, dv_b, dv_h)
    block = tl.program_id(1)
    s = block * KEYS + tl.arange(0, KEYS)
    k_tile = rows_of(keys, s, T, k_t, d_head, HEAD)
    v_tile = rows_of(values, s, T, v_t, d_head, HEAD)
    k_total = tl.full((KEYS, HEAD), 0.0, tl.float32)
    v_total = tl.full((KEYS, HEAD), 0.0, tl.float32)
    in_twos = scale * LOG2_E
    last = tl.load(starts + window + 1)
    for start in range(tl.load(rank + window * T + block * KEYS), last, QUERIES):
        p = start + tl.arange(0, QUERIES)
        position = tl.load(order + p, mask=p < last, other=0) - window * T
        sees = (s[:, None] < position[None, :]) & (p < last)[None, :]
        q_tile = rows_of(qkv + head * d_head, p, last, 3 * D, d_head, HEAD)
        g_tile = rows_of(grad + head * d_head, p, last, D, d_head, HEAD)
        of_sum = tl.load(length + head.to(tl.int64) * S + p, mask=p < last, other=0.0)
        level = tl.load(level_of + head.to(tl.int64) * S + p, mask=p < last, other=0.0)
        score = tl.dot(k_tile, tl.trans(q_tile), input_precision=PRECISION) * in_twos
        weight = tl.where(sees, tl.exp2(score - of_sum[None, :]), 0.0)
        v_total = tl.dot(weight.to(g_tile.dtype), g_tile, v_total, input_precision=PRECISION)
        d_weight = tl.dot(v_tile, tl.trans(g_tile), input_precision=PRECISION)
        d_score = weight * (d_weight - level[None, :])
        k_total = tl.dot(d_score.to(q_tile.dtype), q_tile, k_total, input_precision=PRECISION)
    store_rows(d_keys, k_total * scale, s, T, dk_t, d_head, HEAD)
    store_rows(d_values, v_total, s, T, dv_t, d_head, HEAD)
