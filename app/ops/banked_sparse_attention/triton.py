"""Form of the banked sparse attention for a GPU; see README.md for what each kernel reads and writes.

Shape suffixes: B batch, T sequence, S tokens (B·T), N banks, d head width, D width, k kept positions.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from app.ops.bank_kernels import Groups, group_by_bank, grouped_linear, grouped_outer, precision, tile_width
from app.ops.banked_sparse_attention import kernels, vectorized
from app.ops.precision import matmul_dtype

# The running list lies in registers, and every tile of scores is read once for each position that enters it.
MOST_KEPT = 32
# A query of a wider head does not fit beside its scores.
WIDEST_HEAD = 256
# What one program of the backward takes: kept rows, of whole queries; keys, and rows of h, with so many of their
# readers at a time. Most have few readers, and some have all: the last number is how many of theirs are taken then.
ENTRIES_BACKWARD = 32
KEYS_BACKWARD, READERS_OF_KEY, CROWD_OF_KEY = 8, 8, 64
ROWS_BACKWARD, READERS_OF_ROW, CROWD_OF_ROW = 2, 8, 32


class _BankedSparseAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bank: Tensor,
        top_k: int,
        dtype: torch.dtype,
    ) -> Tensor:
        B, T, D = h.shape
        N, d, _ = query.shape
        ctx.dtypes = h.dtype, query.dtype, key.dtype, value.dtype
        h_SD = h.to(dtype).reshape(B * T, D).contiguous()
        bank_S = bank.reshape(-1).contiguous()  # of one pathway's column it is a view with gaps
        # Queries and keys of all banks are the columns of one product.
        projection = torch.cat([query.reshape(N * d, D), key.reshape(N * d, D)]).to(dtype)
        projected = h_SD @ projection.T
        value = value.to(dtype).contiguous()
        groups = group_by_bank(bank_S, N)

        n_kept = min(top_k, T)
        source = torch.empty(B * T, n_kept, dtype=torch.int32, device=h.device)
        weight = torch.empty(B * T, n_kept, dtype=torch.float32, device=h.device)
        mixed = torch.empty_like(h_SD)
        tile = _score_tile(d, dtype)
        kernels.attend[(B, triton.cdiv(T, tile.queries))](
            h_SD,
            projected,
            bank_S,
            source,
            weight,
            mixed,
            T,
            D,
            d,
            N,
            n_kept,
            d**-0.5,
            KEPT=triton.next_power_of_2(n_kept),
            QUERIES=tile.queries,
            KEYS=tile.keys,
            HEAD=tile_width(d, WIDEST_HEAD),
            WIDTH=tile_width(D, 64),
            PRECISION=precision(dtype),
            num_warps=tile.n_warps,
            num_stages=2,
        )
        ctx.save_for_backward(h_SD, projection, value, projected, bank_S, source, weight, mixed, *groups)
        y = grouped_linear(mixed, value, groups, gather=True, scatter=True)
        return y.view(h.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        h, projection, value, projected, bank, source, weight, mixed, *saved = ctx.saved_tensors
        groups = Groups(*saved)
        h_dtype, query_dtype, key_dtype, value_dtype = ctx.dtypes
        (S, D), N, n_kept = h.shape, value.shape[0], source.shape[1]
        d = projection.shape[0] // (2 * N)
        shape = {"HEAD": tile_width(d, WIDEST_HEAD)}
        kept = triton.next_power_of_2(n_kept)
        n_queries = max(1, ENTRIES_BACKWARD // kept)

        grad_S = grad.reshape(S, D).to(h.dtype).contiguous()
        d_value = grouped_outer(grad_S, mixed, groups, value_dtype, gather_y=True, gather_x=True)
        d_mixed = grouped_linear(grad_S, value.transpose(1, 2), groups, gather=True, scatter=True)

        d_score = torch.empty_like(weight)
        d_projected = torch.empty_like(projected)
        # The (position, bank) that each kept entry reads. Fewer bytes to sort where they hold its number.
        key_row = torch.empty(S * n_kept, dtype=_index_dtype(S * N), device=h.device)
        kernels.query_backward[(triton.cdiv(S, n_queries),)](
            h,
            projected,
            bank,
            source,
            weight,
            d_mixed,
            d_score,
            d_projected,
            key_row,
            S,
            D,
            d,
            N,
            n_kept,
            d**-0.5,
            KEPT=kept,
            QUERIES=n_queries,
            WIDTH=tile_width(D, 128),
            **shape,
        )
        # Sorted, they tell who reads a position, in order.
        sorted_row, entry = torch.sort(key_row, stable=True)
        starts = torch.searchsorted(
            sorted_row, torch.arange(S * N + 1, dtype=sorted_row.dtype, device=h.device), out_int32=True
        )
        kernels.key_backward[(triton.cdiv(S * N, KEYS_BACKWARD),)](
            projected,
            d_score,
            d_projected,
            entry,
            starts,
            S * N,
            d,
            N,
            n_kept,
            KEYS=KEYS_BACKWARD,
            READERS=READERS_OF_KEY,
            CROWD=CROWD_OF_KEY,
            **shape,
        )
        d_projection = (d_projected.T @ h).view(2, N, d, D)
        d_h_of_projection = d_projected @ projection
        d_h = torch.empty(S, D, dtype=h_dtype, device=h.device)
        width = tile_width(D, 128)
        kernels.row_backward[(triton.cdiv(S, ROWS_BACKWARD), triton.cdiv(D, width))](
            d_mixed,
            weight,
            d_h_of_projection,
            d_h,
            entry,
            starts,
            S,
            D,
            N,
            n_kept,
            ROWS=ROWS_BACKWARD,
            READERS=READERS_OF_ROW,
            CROWD=CROWD_OF_ROW,
            WIDTH=width,
        )
        d_query, d_key = d_projection[0].to(query_dtype), d_projection[1].to(key_dtype)
        return d_h.view(grad.shape), d_query, d_key, d_value, None, None, None


class _ScoreTile(NamedTuple):
    queries: int
    keys: int
    n_warps: int


def _score_tile(d_head: int, dtype: torch.dtype) -> _ScoreTile:
    """What fits into the registers; the tensor cores of a multiprocessor take 64 rows at a time."""
    if dtype != torch.float32:
        return _ScoreTile(64, 64, 4 if d_head <= 128 else 8)
    return _ScoreTile(64, 32, 4) if d_head <= 64 else _ScoreTile(32, 32, 4 if d_head <= 128 else 8)


def _index_dtype(n: int) -> torch.dtype:
    return torch.int32 if n < 2**31 else torch.int64


def banked_sparse_attention(
    h: Tensor, query: Tensor, key: Tensor, value: Tensor, bank: Tensor, top_k: int
) -> Tensor:
    """Causal top-k attention; see :func:`app.ops.banked_sparse_attention.banked_sparse_attention`.

    More than 32 kept positions, and heads wider than 256, are computed by the vectorized form.
    """
    if min(top_k, h.shape[1]) > MOST_KEPT or query.shape[1] > WIDEST_HEAD:
        return vectorized.banked_sparse_attention(h, query, key, value, bank, top_k)
    dtype = matmul_dtype(h)
    with torch.autocast(h.device.type, enabled=False), torch.cuda.device_of(h):
        y: Tensor = _BankedSparseAttention.apply(h, query, key, value, bank, top_k, dtype)
    return y
