# mypy: allow-untyped-defs
"""What kernels of attention share: a head of a tensor in any layout, and rows of it.

Shape suffixes: B batch, H heads, T rows, d head width.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from app.ops.bank_kernels import precision, tile_width

WIDEST_HEAD = 128


def strides(*tensors: Tensor) -> tuple[int, ...]:
    """Of windows, heads and rows; those of columns are 1."""
    return tuple(stride for x in tensors for stride in x.stride()[:3])


def tile(d_head: int, dtype: torch.dtype) -> dict[str, Any]:
    """Shape of the tile of one program, by number format alone, and what the compiler is to do with it."""
    n = 32 if dtype == torch.float32 else 64  # fp32 is multiplied in registers
    head = tile_width(d_head, WIDEST_HEAD)
    shape = {"QUERIES": n, "KEYS": n, "HEAD": head, "PRECISION": precision(dtype)}
    return shape | {"num_warps": 4, "num_stages": 2}


def rows_together(x: Tensor) -> Tensor:
    """``x`` itself where its columns lie side by side, a copy where they do not."""
    return x if x.stride(-1) == 1 else x.contiguous()


def heads_of_tokens(x: Tensor, n_rows: int) -> Tensor:
    """Empty ``(B, H, T, d)`` like ``x``, as projections take it: the heads of a token side by side."""
    B, H, _, d = x.shape
    return x.new_empty(B, n_rows, H, d).transpose(1, 2)


@triton.jit
def head_of(x, n_heads, stride_b, stride_h):
    b = (tl.program_id(0) // n_heads).to(tl.int64)
    h = (tl.program_id(0) % n_heads).to(tl.int64)
    return x + b * stride_b + h * stride_h


@triton.jit
def rows_of(x, t, n_rows, stride_t, d_head, HEAD: tl.constexpr):
    """Rows t of one head, zeros beyond its end."""
    c = tl.arange(0, HEAD)
    at = x + t.to(tl.int64)[:, None] * stride_t + c[None, :]
    return tl.load(at, mask=(t < n_rows)[:, None] & (c < d_head)[None, :], other=0.0)


@triton.jit
def store_rows(x, rows, t, n_rows, stride_t, d_head, HEAD: tl.constexpr):
    c = tl.arange(0, HEAD)
    at = x + t.to(tl.int64)[:, None] * stride_t + c[None, :]
    tl.store(at, rows.to(x.dtype.element_ty), mask=(t < n_rows)[:, None] & (c < d_head)[None, :])
