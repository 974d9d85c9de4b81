"""Fast form of the banked sparse attention: one score product for all banks, values after the gather.

Shape suffixes: B batch, T sequence, S tokens (B·T), N banks, d head width, D width, k kept positions.
A name with suffix ``s`` in front of its shape (``hs_SD``) holds tokens sorted by bank.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from app.ops.banked_sparse_attention.selection import largest_first
from app.ops.banks import BankOrder, grouped_linear, grouped_outer, sort_by_bank
from app.ops.precision import accumulation_dtype, matmul_dtype

# Scores that exist at one time: a tile of queries against all their keys (4 MiB in fp32, on the CPU).
SCORES_PER_TILE = {"cpu": 2**20}
SCORES_PER_TILE_ELSEWHERE = 2**26
# Elements of h gathered at one time in the backward (2 MiB in fp32).
GATHERED_ELEMENTS = 2**19


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
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        h_SD = h.reshape(B * T, D)
        groups = sort_by_bank(bank.reshape(-1), N)
        qs_Sd = grouped_linear(h_SD.index_select(0, groups.order).to(dtype), query, groups)
        keys_SNd = h_SD.to(dtype) @ key.view(N * d, D).T
        # A query lies in its own bank's slot, beside zeros: its products with all banks' keys add up to one.
        own = bank.unsqueeze(-1) == torch.arange(N, device=h.device)
        slots = own.unsqueeze(-1).to(dtype) * qs_Sd.index_select(0, groups.place).view(B, T, 1, d)
        position, weight = _select(
            slots.view(B, T, N * d), keys_SNd.view(B, T, N * d), d**-0.5, top_k, h.dtype
        )

        row_of_window = torch.arange(0, B * T, T, device=h.device).view(B, 1, 1)
        source = (position + row_of_window).flatten(0, 1).index_select(0, groups.order)
        weight = weight.flatten(0, 1).index_select(0, groups.order)
        mixed_SD = _weighted_rows(h_SD, source, weight)
        ys_SD = grouped_linear(mixed_SD.to(dtype), value, groups)
        ctx.save_for_backward(h_SD, query, key, value, qs_Sd, keys_SNd, source, weight, mixed_SD, *groups)
        return ys_SD.index_select(0, groups.place).view(h.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        h_SD, query, key, value, qs_Sd, keys_SNd, source, weight, mixed_SD, *saved = ctx.saved_tensors
        groups = BankOrder(*saved)
        N, d, D = query.shape
        S = h_SD.shape[0]
        dtype = query.dtype
        hs_SD = h_SD.index_select(0, groups.order).to(dtype)

        grad_s = grad.reshape(S, D).index_select(0, groups.order)
        d_value = grouped_outer(grad_s, mixed_SD.to(dtype), groups)
        d_mixed = grouped_linear(grad_s, value.transpose(1, 2), groups).to(h_SD.dtype)
        d_weight = _row_products(h_SD, source, d_mixed)
        d_score = weight * (d_weight - (weight * d_weight).sum(-1, keepdim=True)) * d**-0.5

        # The (position, bank) that each kept entry reads; sorted, it tells who reads a position, in order.
        key_row = source * N + groups.bank.unsqueeze(1)
        dqs_Sd = _weighted_rows(keys_SNd.view(S * N, d).to(h_SD.dtype), key_row, d_score).to(dtype)
        sorted_row, entry = torch.sort(key_row.view(-1), stable=True)
        reader = entry // source.shape[1]
        starts = torch.searchsorted(sorted_row, torch.arange(S * N, device=grad.device))
        d_score, weight = (x.reshape(-1).index_select(0, entry) for x in (d_score, weight))
        d_keys = _weighted_bags(qs_Sd.to(h_SD.dtype), reader, starts, d_score).view(S, N * d).to(dtype)
        d_h = _weighted_bags(d_mixed, reader, starts[::N].contiguous(), weight)

        d_query = grouped_outer(dqs_Sd, hs_SD, groups)
        d_key = (d_keys.T @ h_SD.to(dtype)).view(N, d, D)
        d_h += d_keys @ key.view(N * d, D)
        d_h += grouped_linear(dqs_Sd, query.transpose(1, 2), groups).index_select(0, groups.place)
        return d_h.view(grad.shape), d_query, d_key, d_value, None, None, None


def _select(
    query: Tensor, key: Tensor, scale: float, top_k: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Kept positions ``(B, T, k)`` and their softmax weights; padded with weight 0 where t + 1 < k."""
    B, T, _ = query.shape
    n_kept = min(top_k, T)
    positions = torch.empty(B, T, n_kept, dtype=torch.int64, device=query.device)
    weights = torch.empty(B, T, n_kept, dtype=dtype, device=query.device)
    n_rows = max(1, SCORES_PER_TILE.get(query.device.type, SCORES_PER_TILE_ELSEWHERE) // max(1, B * T))
    for start in range(0, T, n_rows):
        rows = slice(start, min(T, start + n_rows))
        n_keys = max(rows.stop, n_kept)
        time = torch.arange(rows.start, rows.stop, device=query.device).unsqueeze(1)
        scores = (query[:, rows] @ key[:, :n_keys].transpose(1, 2)).to(dtype).mul_(scale)
        # Every key before this tile is in the past of all its queries: only the last columns need a mask.
        last_columns = scores[..., rows.start :]
        future = last_columns.new_ones(last_columns.shape[1:], dtype=torch.bool).triu_(1)
        last_columns.masked_fill_(future, float("-inf"))
        position = largest_first(scores, n_kept)
        weights[:, rows] = scores.gather(-1, position).softmax(-1)
        # Padding lies in the future and weighs nothing, but 0 · inf would still carry a fault back in time.
        positions[:, rows] = torch.minimum(position, time)
    return positions, weights


def _weighted_bags(rows: Tensor, index: Tensor, starts: Tensor, weight: Tensor) -> Tensor:
    """``Σ weight · rows[index]`` over each bag of consecutive entries; zeros for an empty bag."""
    return F.embedding_bag(index, rows, starts, mode="sum", per_sample_weights=weight)


def _weighted_rows(rows: Tensor, index_Sk: Tensor, weight_Sk: Tensor) -> Tensor:
    starts = torch.arange(0, index_Sk.numel(), index_Sk.shape[1], device=rows.device)
    return _weighted_bags(rows, index_Sk.reshape(-1), starts, weight_Sk.reshape(-1))


def _row_products(rows_SD: Tensor, index_Sk: Tensor, other_SD: Tensor) -> Tensor:
    """``⟨rows[index[s, i]], other[s]⟩``, ``(S, k)``, a few tokens at a time in one buffer."""
    S, n_kept = index_Sk.shape
    D = rows_SD.shape[1]
    products = rows_SD.new_empty(S, n_kept)
    n_tokens = max(1, GATHERED_ELEMENTS // (n_kept * D) if rows_SD.device.type == "cpu" else S)
    buffer = rows_SD.new_empty(min(S, n_tokens) * n_kept, D)
    for start in range(0, S, n_tokens):
        index = index_Sk[start : start + n_tokens]
        gathered = buffer[: index.numel()]
        torch.index_select(rows_SD, 0, index.reshape(-1), out=gathered)
        gathered = gathered.view(*index.shape, D).mul_(other_SD[start : start + n_tokens].unsqueeze(1))
        torch.sum(gathered, -1, out=products[start : start + n_tokens])
    return products


def banked_sparse_attention(
    h: Tensor, query: Tensor, key: Tensor, value: Tensor, bank: Tensor, top_k: int
) -> Tensor:
    """One head of causal attention over each query's ``min(top_k, t+1)`` best positions.

    Scores are ``q·k/√d``; among equal scores the lowest position wins; softmax over the kept ones, in fp32 at
    least. The selection itself has no gradient.

    Args:
        h: ``(B, T, D)``.
        query: ``(N, d, D)``.
        key: ``(N, d, D)``.
        value: ``(N, D, D)``.
        bank: ``(B, T)`` int64 in [0, N), the bank that each token reads the sequence through.
        top_k: positions kept per query, at least 1.

    Returns:
        ``(B, T, D)``, in autocast's dtype inside its context, in that of ``h`` elsewhere.
    """
    dtype = matmul_dtype(h)
    with torch.autocast(h.device.type, enabled=False):
        return _BankedSparseAttention.apply(
            h.to(accumulation_dtype(h)), query, key, value, bank, top_k, dtype
        )
