# mypy: allow-untyped-defs
"""Form of the sigmoid attention for a GPU: a tile of weights at a time, forward and backward.

Shape suffixes: B batch, H heads, T queries, S keys, d head width.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

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
from app.ops.precision import matmul_dtype
from app.ops.sigmoid_attention import naive
from app.ops.sigmoid_attention.dropout import Dropout, dropout_of

LOG2_E = tl.constexpr(1.4426950408889634)


class _SigmoidAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor,
        straight_through: bool,
        probability: float,
        seed: Tensor | None,
    ) -> Tensor:
        q, k, v = (rows_together(x) for x in (q, k, v))
        rows = bias.reshape(-1).float()
        B, H, T, d = q.shape
        y = heads_of_tokens(q, T)
        shape = tile(d, q.dtype)
        drops = _drops(probability, seed)
        _forward[(B * H, triton.cdiv(T, shape["QUERIES"]))](
            q, k, v, rows, seed, y, *_sizes(q, k, rows), *strides(q, k, v, y), d**-0.5, *drops, **shape
        )
        ctx.save_for_backward(q, k, v, rows, seed)
        ctx.bias, ctx.straight_through, ctx.drops = (bias.shape, bias.dtype), straight_through, drops
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, rows, seed = ctx.saved_tensors
        grad = rows_together(grad.to(q.dtype))
        (B, H, T, d), S = q.shape, k.shape[2]
        shape = tile(d, q.dtype) | {"STRAIGHT_THROUGH": ctx.straight_through}
        dq = heads_of_tokens(q, T)
        d_rows = torch.empty(B * H, T, dtype=torch.float32, device=q.device)
        sizes, scales = _sizes(q, k, rows), (d**-0.5, *ctx.drops)
        _query_backward[(B * H, triton.cdiv(T, shape["QUERIES"]))](
            q, k, v, rows, seed, grad, dq, d_rows, *sizes, *strides(q, k, v, grad, dq), *scales, **shape
        )
        dk, dv = (heads_of_tokens(q, S) for _ in range(2))
        _key_backward[(B * H, triton.cdiv(S, shape["KEYS"]))](
            q, k, v, rows, seed, grad, dk, dv, *sizes, *strides(q, k, v, grad, dk, dv), *scales, **shape
        )
        shape, dtype = ctx.bias
        d_bias = (d_rows.sum() if len(shape) == 0 else d_rows.sum(0)).view(shape).to(dtype)
        return dq, dk, dv, d_bias, None, None, None


def _sizes(q: Tensor, k: Tensor, rows: Tensor) -> tuple[int, ...]:
    return q.shape[1], q.shape[2], k.shape[2], q.shape[3], int(rows.numel() > 1)


def _drops(probability: float, seed: Tensor | None) -> tuple[float, int, bool]:
    """Factor on the weights that stay, threshold, whether there is any."""
    if seed is None:
        return 1.0, 0, False
    return 1 / (1 - probability), Dropout(probability, seed).threshold, True


def sigmoid_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    dropout: float = 0.0,
    straight_through: bool = False,
    seed: Tensor | None = None,
) -> Tensor:
    """Causal attention by sigmoids; see :func:`app.ops.sigmoid_attention.sigmoid_attention`.

    Heads wider than 128 are left to the reference.
    """
    if q.shape[-1] > WIDEST_HEAD:
        return naive.sigmoid_attention(q, k, v, bias, dropout, straight_through, seed)
    dtype = matmul_dtype(q)
    drops = dropout_of(q, dropout, seed)
    drawn = None if drops is None else drops.seed
    with torch.autocast(q.device.type, enabled=False), torch.cuda.device_of(q):
        y: Tensor = _SigmoidAttention.apply(
            q.to(dtype), k.to(dtype), v.to(dtype), bias, straight_through, dropout, drawn
        )
    return y


@triton.jit
def _mixed(x):
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF)) * -2073254261
    return x ^ ((x >> 16) & 0xFFFF)


@triton.jit
def _keys_of(seed, position):
    """What the dropped weights of these rows, or columns, of one head follow from; see dropout.py."""
    head = tl.full((1,), 0, tl.int32) + tl.program_id(0)
    return _mixed(_mixed(head ^ tl.load(seed)) ^ position)


@triton.jit
def _stays(rows, columns, threshold):
    bits = (rows ^ columns) * 0x7FEB352D
    bits = (bits ^ ((bits >> 15) & 0x1FFFF)) * -2073254261
    return bits >= threshold


@triton.jit
def _sigmoid(score):
    """Of a score times log₂ e."""
    return 1.0 / (1.0 + tl.exp2(-score))


@triton.jit
def _forward(
    q, k, v, bias, seed, y, n_heads, n_queries, n_keys, d_head, bias_stride,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, y_b, y_h, y_t, scale,
    stay_scale, threshold, DROPS: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, HEAD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # Late queries, which have the longest past, begin first.
    block = tl.num_programs(1) - 1 - tl.program_id(1)
    q, k = head_of(q, n_heads, q_b, q_h), head_of(k, n_heads, k_b, k_h)
    v, y = head_of(v, n_heads, v_b, v_h), head_of(y, n_heads, y_b, y_h)
    t = block * QUERIES + tl.arange(0, QUERIES)
    position = t + n_keys - n_queries
    q_tile = rows_of(q, t, n_queries, q_t, d_head, HEAD)
    b = tl.load(bias + t * bias_stride, mask=t < n_queries, other=0.0) * LOG2_E
    total = tl.full((QUERIES, HEAD), 0.0, tl.float32)
    in_twos = scale * LOG2_E
    if DROPS:
        rows = _keys_of(seed, t)
    for start in range(0, tl.minimum(n_keys, (block + 1) * QUERIES + n_keys - n_queries), KEYS):
        s = start + tl.arange(0, KEYS)
        k_tile = rows_of(k, s, n_keys, k_t, d_head, HEAD)
        score = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * in_twos + b[:, None]
        counts = s[None, :] <= position[:, None]
        if DROPS:
            counts &= _stays(rows[:, None], _keys_of(seed + 1, s)[None, :], threshold)
        weight = tl.where(counts, _sigmoid(score), 0.0)
        v_tile = rows_of(v, s, n_keys, v_t, d_head, HEAD)
        total = tl.dot(weight.to(v_tile.dtype), v_tile, total, input_precision=PRECISION)
    store_rows(y, total * stay_scale, t, n_queries, y_t, d_head, HEAD)


@triton.jit
def _query_backward(
    q, k, v, bias, seed, grad, dq, d_bias, n_heads, n_queries, n_keys, d_head, bias_stride,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, g_b, g_h, g_t, dq_b, dq_h, dq_t, scale,
    stay_scale, threshold, DROPS: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, HEAD: tl.constexpr, PRECISION: tl.constexpr,
    STRAIGHT_THROUGH: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of queries, and of the bias by each."""
    block = tl.num_programs(1) - 1 - tl.program_id(1)
    q, k = head_of(q, n_heads, q_b, q_h), head_of(k, n_heads, k_b, k_h)
    v, grad = head_of(v, n_heads, v_b, v_h), head_of(grad, n_heads, g_b, g_h)
    dq = head_of(dq, n_heads, dq_b, dq_h)
    t = block * QUERIES + tl.arange(0, QUERIES)
    position = t + n_keys - n_queries
    q_tile = rows_of(q, t, n_queries, q_t, d_head, HEAD)
    g_tile = rows_of(grad, t, n_queries, g_t, d_head, HEAD)
    b = tl.load(bias + t * bias_stride, mask=t < n_queries, other=0.0) * LOG2_E
    total = tl.full((QUERIES, HEAD), 0.0, tl.float32)
    in_twos = scale * LOG2_E
    if DROPS:
        rows = _keys_of(seed, t)
    d_row = tl.full((QUERIES,), 0.0, tl.float32)
    for start in range(0, tl.minimum(n_keys, (block + 1) * QUERIES + n_keys - n_queries), KEYS):
        s = start + tl.arange(0, KEYS)
        k_tile = rows_of(k, s, n_keys, k_t, d_head, HEAD)
        v_tile = rows_of(v, s, n_keys, v_t, d_head, HEAD)
        d_score = tl.dot(g_tile, tl.trans(v_tile), input_precision=PRECISION)
        if not STRAIGHT_THROUGH:
            score = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * in_twos + b[:, None]
            weight = _sigmoid(score)
            d_score *= weight * (1.0 - weight)
        counts = s[None, :] <= position[:, None]
        if DROPS:
            counts &= _stays(rows[:, None], _keys_of(seed + 1, s)[None, :], threshold)
        d_score = tl.where(counts, d_score, 0.0)
        d_row += tl.sum(d_score, 1)
        total = tl.dot(d_score.to(k_tile.dtype), k_tile, total, input_precision=PRECISION)
    store_rows(dq, total * (scale * stay_scale), t, n_queries, dq_t, d_head, HEAD)
    tl.store(d_bias + tl.program_id(0).to(tl.int64) * n_queries + t, d_row * stay_scale, mask=t < n_queries)


@triton.jit
def _key_backward(
    q, k, v, bias, seed, grad, dk, dv, n_heads, n_queries, n_keys, d_head, bias_stride,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, g_b, g_h, g_t, dk_b, dk_h, dk_t, dv_b, dv_h, dv_t, scale,
    stay_scale, threshold, DROPS: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, HEAD: tl.constexpr, PRECISION: tl.constexpr,
    STRAIGHT_THROUGH: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys and values, over the queries that see it, in their order."""
    block = tl.program_id(1)
    q, k = head_of(q, n_heads, q_b, q_h), head_of(k, n_heads, k_b, k_h)
    v, grad = head_of(v, n_heads, v_b, v_h), head_of(grad, n_heads, g_b, g_h)
    dk, dv = head_of(dk, n_heads, dk_b, dk_h), head_of(dv, n_heads, dv_b, dv_h)
    s = block * KEYS + tl.arange(0, KEYS)
    k_tile = rows_of(k, s, n_keys, k_t, d_head, HEAD)
    v_tile = rows_of(v, s, n_keys, v_t, d_head, HEAD)
    in_twos = scale * LOG2_E
    if DROPS:
        columns = _keys_of(seed + 1, s)
    k_total = tl.full((KEYS, HEAD), 0.0, tl.float32)
    v_total = tl.full((KEYS, HEAD), 0.0, tl.float32)
    for start in range(tl.maximum(0, block * KEYS - (n_keys - n_queries)), n_queries, QUERIES):
        t = start + tl.arange(0, QUERIES)
        counts = (s[:, None] <= (t + n_keys - n_queries)[None, :]) & (t < n_queries)[None, :]
        if DROPS:
            counts &= _stays(_keys_of(seed, t)[None, :], columns[:, None], threshold)
        q_tile = rows_of(q, t, n_queries, q_t, d_head, HEAD)
        g_tile = rows_of(grad, t, n_queries, g_t, d_head, HEAD)
        b = tl.load(bias + t * bias_stride, mask=t < n_queries, other=0.0) * LOG2_E
        score = tl.dot(k_tile, tl.trans(q_tile), input_precision=PRECISION) * in_twos + b[None, :]
        weight = tl.where(counts, _sigmoid(score), 0.0)
        v_total = tl.dot(weight.to(g_tile.dtype), g_tile, v_total, input_precision=PRECISION)
        d_score = tl.dot(v_tile, tl.trans(g_tile), input_precision=PRECISION)
        if STRAIGHT_THROUGH:
            d_score = tl.where(counts, d_score, 0.0)
        else:
            d_score = tl.where(counts, d_score * weight * (1.0 - weight), 0.0)
        k_total = tl.dot(d_score.to(q_tile.dtype), q_tile, k_total, input_precision=PRECISION)
    store_rows(dk, k_total * (scale * stay_scale), s, n_keys, dk_t, d_head, HEAD)
    store_rows(dv, v_total * stay_scale, s, n_keys, dv_t, d_head, HEAD)
