# mypy: allow-untyped-defs
"""Form of the sigmoid attention for a GPU: a tile of weights at a time, forward and backward.

Shape suffixes: B batch, H heads, T queries, S keys, d head width.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from app.ops.bank_kernels import precision, tile_width
from app.ops.precision import matmul_dtype
from app.ops.sigmoid_attention import naive

WIDEST_HEAD = 128


class _SigmoidAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, straight_through: bool) -> Tensor:
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        rows = bias.reshape(-1).float()
        B, H, T, d = q.shape
        # As projections take it: the heads of a token side by side.
        y = q.new_empty(B, T, H, d).transpose(1, 2)
        tile = _tile(d, q.dtype)
        _forward[(B * H, triton.cdiv(T, tile["QUERIES"]))](
            q, k, v, rows, y, *_sizes(q, k, rows), *_strides(q, k, v, y), d**-0.5, **tile
        )
        ctx.save_for_backward(q, k, v, rows)
        ctx.bias, ctx.straight_through = (bias.shape, bias.dtype), straight_through
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, rows = ctx.saved_tensors
        grad = grad.to(q.dtype)
        if grad.stride(-1) != 1:
            grad = grad.contiguous()
        (B, H, T, d), S = q.shape, k.shape[2]
        tile = _tile(d, q.dtype) | {"STRAIGHT_THROUGH": ctx.straight_through}
        dq = q.new_empty(B, T, H, d).transpose(1, 2)
        d_rows = torch.empty(B * H, T, dtype=torch.float32, device=q.device)
        sizes, scale = _sizes(q, k, rows), d**-0.5
        _query_backward[(B * H, triton.cdiv(T, tile["QUERIES"]))](
            q, k, v, rows, grad, dq, d_rows, *sizes, *_strides(q, k, v, grad, dq), scale, **tile
        )
        dk, dv = (q.new_empty(B, S, H, d).transpose(1, 2) for _ in range(2))
        _key_backward[(B * H, triton.cdiv(S, tile["KEYS"]))](
            q, k, v, rows, grad, dk, dv, *sizes, *_strides(q, k, v, grad, dk, dv), scale, **tile
        )
        shape, dtype = ctx.bias
        d_bias = (d_rows.sum() if len(shape) == 0 else d_rows.sum(0)).view(shape).to(dtype)
        return dq, dk, dv, d_bias, None


def _sizes(q: Tensor, k: Tensor, rows: Tensor) -> tuple[int, ...]:
    return q.shape[1], q.shape[2], k.shape[2], q.shape[3], int(rows.numel() > 1)


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(stride for x in tensors for stride in x.stride()[:3])


def _tile(d_head: int, dtype: torch.dtype) -> dict[str, Any]:
    n = 32 if dtype == torch.float32 else 64  # fp32 is multiplied in registers
    head = tile_width(d_head, WIDEST_HEAD)
    shape = {"QUERIES": n, "KEYS": n, "HEAD": head, "PRECISION": precision(dtype)}
    return shape | {"num_warps": 4, "num_stages": 2}


def sigmoid_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout: float = 0.0, straight_through: bool = False
) -> Tensor:
    """Causal attention by sigmoids; see :func:`app.ops.sigmoid_attention.sigmoid_attention`.

    Heads wider than 128 and dropped weights are left to the reference.
    """
    if q.shape[-1] > WIDEST_HEAD or dropout > 0.0:
        return naive.sigmoid_attention(q, k, v, bias, dropout, straight_through)
    dtype = matmul_dtype(q)
    with torch.autocast(q.device.type, enabled=False), torch.cuda.device_of(q):
        y: Tensor = _SigmoidAttention.apply(q.to(dtype), k.to(dtype), v.to(dtype), bias, straight_through)
    return y


@triton.jit
def _head_of(x, n_heads, stride_b, stride_h):
    b = (tl.program_id(0) // n_heads).to(tl.int64)
    h = (tl.program_id(0) % n_heads).to(tl.int64)
    return x + b * stride_b + h * stride_h


@triton.jit
def _rows_of(x, t, n_rows, stride_t, d_head, HEAD: tl.constexpr):
    """Rows t of one head, zeros beyond its end."""
    c = tl.arange(0, HEAD)
    at = x + t.to(tl.int64)[:, None] * stride_t + c[None, :]
    return tl.load(at, mask=(t < n_rows)[:, None] & (c < d_head)[None, :], other=0.0)


@triton.jit
def _store_rows(x, rows, t, n_rows, stride_t, d_head, HEAD: tl.constexpr):
    c = tl.arange(0, HEAD)
    at = x + t.to(tl.int64)[:, None] * stride_t + c[None, :]
    tl.store(at, rows.to(x.dtype.element_ty), mask=(t < n_rows)[:, None] & (c < d_head)[None, :])


@triton.jit
def _sigmoid(score):
    # Of the negative absolute value, so that no power of e is infinite.
    small = tl.exp(-tl.abs(score))
    return tl.where(score >= 0, 1.0, small) / (1.0 + small)


@triton.jit
def _forward(
    q, k, v, bias, y, n_heads, n_queries, n_keys, d_head, bias_stride,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, y_b, y_h, y_t, scale,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, HEAD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # Late queries, which have the longest past, begin first.
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    q, k = _head_of(q, n_heads, q_b, q_h), _head_of(k, n_heads, k_b, k_h)
    v, y = _head_of(v, n_heads, v_b, v_h), _head_of(y, n_heads, y_b, y_h)
    t = tile * QUERIES + tl.arange(0, QUERIES)
    position = t + n_keys - n_queries
    q_tile = _rows_of(q, t, n_queries, q_t, d_head, HEAD)
    b = tl.load(bias + t * bias_stride, mask=t < n_queries, other=0.0)
    total = tl.full((QUERIES, HEAD), 0.0, tl.float32)
    for start in range(0, tl.minimum(n_keys, (tile + 1) * QUERIES + n_keys - n_queries), KEYS):
        s = start + tl.arange(0, KEYS)
        k_tile = _rows_of(k, s, n_keys, k_t, d_head, HEAD)
        score = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * scale + b[:, None]
        weight = tl.where(s[None, :] <= position[:, None], _sigmoid(score), 0.0)
        v_tile = _rows_of(v, s, n_keys, v_t, d_head, HEAD)
        total = tl.dot(weight.to(v_tile.dtype), v_tile, total, input_precision=PRECISION)
    _store_rows(y, total, t, n_queries, y_t, d_head, HEAD)


@triton.jit
def _query_backward(
    q, k, v, bias, grad, dq, d_bias, n_heads, n_queries, n_keys, d_head, bias_stride,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, g_b, g_h, g_t, dq_b, dq_h, dq_t, scale,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, HEAD: tl.constexpr, PRECISION: tl.constexpr,
    STRAIGHT_THROUGH: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of queries, and of the bias by each."""
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    q, k = _head_of(q, n_heads, q_b, q_h), _head_of(k, n_heads, k_b, k_h)
    v, grad = _head_of(v, n_heads, v_b, v_h), _head_of(grad, n_heads, g_b, g_h)
    dq = _head_of(dq, n_heads, dq_b, dq_h)
    t = tile * QUERIES + tl.arange(0, QUERIES)
    position = t + n_keys - n_queries
    q_tile = _rows_of(q, t, n_queries, q_t, d_head, HEAD)
    g_tile = _rows_of(grad, t, n_queries, g_t, d_head, HEAD)
    b = tl.load(bias + t * bias_stride, mask=t < n_queries, other=0.0)
    total = tl.full((QUERIES, HEAD), 0.0, tl.float32)
    d_row = tl.full((QUERIES,), 0.0, tl.float32)
    for start in range(0, tl.minimum(n_keys, (tile + 1) * QUERIES + n_keys - n_queries), KEYS):
        s = start + tl.arange(0, KEYS)
        k_tile = _rows_of(k, s, n_keys, k_t, d_head, HEAD)
        v_tile = _rows_of(v, s, n_keys, v_t, d_head, HEAD)
        d_score = tl.dot(g_tile, tl.trans(v_tile), input_precision=PRECISION)
        if not STRAIGHT_THROUGH:
            score = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * scale + b[:, None]
            weight = _sigmoid(score)
            d_score *= weight * (1.0 - weight)
        d_score = tl.where(s[None, :] <= position[:, None], d_score, 0.0)
        d_row += tl.sum(d_score, 1)
        total = tl.dot(d_score.to(k_tile.dtype), k_tile, total, input_precision=PRECISION)
    _store_rows(dq, total * scale, t, n_queries, dq_t, d_head, HEAD)
    tl.store(d_bias + tl.program_id(0).to(tl.int64) * n_queries + t, d_row, mask=t < n_queries)


@triton.jit
def _key_backward(
    q, k, v, bias, grad, dk, dv, n_heads, n_queries, n_keys, d_head, bias_stride,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, g_b, g_h, g_t, dk_b, dk_h, dk_t, dv_b, dv_h, dv_t, scale,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, HEAD: tl.constexpr, PRECISION: tl.constexpr,
    STRAIGHT_THROUGH: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys and values, over the queries that see it, in their order."""
    tile = tl.program_id(1)
    q, k = _head_of(q, n_heads, q_b, q_h), _head_of(k, n_heads, k_b, k_h)
    v, grad = _head_of(v, n_heads, v_b, v_h), _head_of(grad, n_heads, g_b, g_h)
    dk, dv = _head_of(dk, n_heads, dk_b, dk_h), _head_of(dv, n_heads, dv_b, dv_h)
    s = tile * KEYS + tl.arange(0, KEYS)
    k_tile = _rows_of(k, s, n_keys, k_t, d_head, HEAD)
    v_tile = _rows_of(v, s, n_keys, v_t, d_head, HEAD)
    k_total = tl.full((KEYS, HEAD), 0.0, tl.float32)
    v_total = tl.full((KEYS, HEAD), 0.0, tl.float32)
    for start in range(tl.maximum(0, tile * KEYS - (n_keys - n_queries)), n_queries, QUERIES):
        t = start + tl.arange(0, QUERIES)
        sees = (s[:, None] <= (t + n_keys - n_queries)[None, :]) & (t < n_queries)[None, :]
        q_tile = _rows_of(q, t, n_queries, q_t, d_head, HEAD)
        g_tile = _rows_of(grad, t, n_queries, g_t, d_head, HEAD)
        b = tl.load(bias + t * bias_stride, mask=t < n_queries, other=0.0)
        score = tl.dot(k_tile, tl.trans(q_tile), input_precision=PRECISION) * scale + b[None, :]
        weight = tl.where(sees, _sigmoid(score), 0.0)
        v_total = tl.dot(weight.to(g_tile.dtype), g_tile, v_total, input_precision=PRECISION)
        d_score = tl.dot(v_tile, tl.trans(g_tile), input_precision=PRECISION)
        if STRAIGHT_THROUGH:
            d_score = tl.where(sees, d_score, 0.0)
        else:
            d_score = tl.where(sees, d_score * weight * (1.0 - weight), 0.0)
        k_total = tl.dot(d_score.to(q_tile.dtype), q_tile, k_total, input_precision=PRECISION)
    _store_rows(dk, k_total * scale, s, n_keys, dk_t, d_head, HEAD)
    _store_rows(dv, v_total, s, n_keys, dv_t, d_head, HEAD)
