# mypy: allow-untyped-defs
"""Form of the router of banks for GPUs: one launch decides, one adds up the means, one sends the gradients back.

Shape suffixes: S tokens (B·T), P pathways, N banks.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from app.ops.bank_router import naive

# Numbers of a tile, and the most of a token.
TILE, MOST_ENTRIES, WARPS = 2048, 1024, 4
# Partial sums that one step of the second launch adds, and their columns of one of its programs.
PARTS, COLUMNS = 64, 16


class _BankRouter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_SE: Tensor, n_banks: int, by_bank: bool) -> tuple[Tensor, Tensor, Tensor]:
        S, n_entries = logits_SE.shape
        n_pathways, shape = n_entries // n_banks, _tile(n_entries // n_banks, n_banks)
        n_programs = triton.cdiv(S, shape["TOKENS"])
        device = logits_SE.device
        weights = torch.empty(S, n_pathways, dtype=torch.float32, device=device)
        bank = torch.empty(S, n_pathways, dtype=torch.int64, device=device)
        partial = torch.empty(n_programs, n_entries, dtype=torch.float32, device=device)
        mean = torch.empty(n_pathways, n_banks, dtype=torch.float32, device=device)
        _forward_kernel[(n_programs,)](
            logits_SE, weights, bank, partial, S, n_pathways, n_banks, BY_BANK=by_bank, **shape
        )
        _means_kernel[(triton.cdiv(n_entries, COLUMNS),)](
            partial, mean, n_programs, n_entries, S, PARTS=PARTS, COLUMNS=COLUMNS
        )
        ctx.save_for_backward(logits_SE, bank)
        ctx.options = n_banks, by_bank
        ctx.mark_non_differentiable(bank)
        return weights, bank, mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        logits_SE, bank = ctx.saved_tensors
        n_banks, by_bank = ctx.options
        S, n_entries = logits_SE.shape
        n_pathways, shape = n_entries // n_banks, _tile(n_entries // n_banks, n_banks)
        d_logits = torch.empty_like(logits_SE)
        _backward_kernel[(triton.cdiv(S, shape["TOKENS"]),)](
            logits_SE, bank, gradients[0].contiguous(), gradients[2].contiguous(), d_logits, S, n_pathways, n_banks,
            BY_BANK=by_bank, **shape,
        )  # fmt: skip
        return d_logits, None, None


def _tile(n_pathways: int, n_banks: int) -> dict[str, int]:
    pathways, banks = triton.next_power_of_2(n_pathways), triton.next_power_of_2(n_banks)
    tokens = max(1, TILE // (pathways * banks))
    return {"TOKENS": tokens, "PATHWAYS": pathways, "BANKS": banks, "num_warps": WARPS}


def bank_router(logits: Tensor, n_banks: int, by_bank: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, banks and mean probabilities; see :func:`app.ops.bank_router.bank_router`."""
    n_pathways = logits.shape[-1] // n_banks
    if triton.next_power_of_2(n_pathways) * triton.next_power_of_2(n_banks) > MOST_ENTRIES:
        return naive.bank_router(logits, n_banks, by_bank)
    shape = *logits.shape[:-1], n_pathways
    with torch.cuda.device_of(logits):
        weights, bank, mean = _BankRouter.apply(
            logits.reshape(-1, logits.shape[-1]).contiguous(), n_banks, by_bank
        )
    return weights.view(shape), bank.view(shape), mean


@triton.jit
def _probabilities(
    logits, S, n_pathways, n_banks, TOKENS: tl.constexpr, PATHWAYS: tl.constexpr, BANKS: tl.constexpr
):
    """A tile ``(TOKENS, PATHWAYS, BANKS)``, zeros where there is nothing; where it lies, and what of it is there."""
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS))[:, None, None]
    p, n = tl.arange(0, PATHWAYS)[None, :, None], tl.arange(0, BANKS)[None, None, :]
    inside = (token < S) & (p < n_pathways) & (n < n_banks)
    at = token.to(tl.int64) * (n_pathways * n_banks) + p * n_banks + n
    z = tl.load(logits + at, mask=inside, other=float("-inf")).to(tl.float32)
    # A token beyond the last one has none, and −inf less −inf is no number.
    z = tl.where(token < S, z, 0.0)
    largest = tl.max(tl.max(z, 2), 1)
    e = tl.exp(z - largest[:, None, None])
    r = e / tl.sum(tl.sum(e, 2), 1)[:, None, None]
    return tl.where(inside, r, 0.0), at, inside


@triton.jit
def _forward_kernel(
    logits, weights, bank, partial, S, n_pathways, n_banks,
    BY_BANK: tl.constexpr, TOKENS: tl.constexpr, PATHWAYS: tl.constexpr, BANKS: tl.constexpr,
):  # fmt: skip
    r, _, inside = _probabilities(logits, S, n_pathways, n_banks, TOKENS, PATHWAYS, BANKS)
    likeliest = tl.max(tl.where(inside, r, -1.0), 2)
    n = tl.arange(0, BANKS)[None, None, :]
    # What is no number is the likeliest, as for ``argmax``; of equals the first is.
    is_largest = inside & ((r == likeliest[:, :, None]) | (r != r))
    own = tl.min(tl.where(is_largest, n, BANKS), 2)
    own = tl.where(own == BANKS, 0, own)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    p = tl.arange(0, PATHWAYS)
    at = token.to(tl.int64)[:, None] * n_pathways + p[None, :]
    there = (token < S)[:, None] & (p < n_pathways)[None, :]
    tl.store(bank + at, own.to(tl.int64), mask=there)
    counted = r
    if BY_BANK:
        counted = tl.where(n == own[:, :, None], r, 0.0)
    tl.store(weights + at, tl.sum(counted, 2), mask=there)
    of_tile = tl.sum(r, 0)
    entry = p[:, None] * n_banks + tl.arange(0, BANKS)[None, :]
    is_entry = (p < n_pathways)[:, None] & (tl.arange(0, BANKS) < n_banks)[None, :]
    tl.store(partial + tl.program_id(0) * (n_pathways * n_banks) + entry, of_tile, mask=is_entry)


@triton.jit
def _means_kernel(partial, mean, n_programs, n_entries, S, PARTS: tl.constexpr, COLUMNS: tl.constexpr):
    entry = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([PARTS, COLUMNS], tl.float32)
    for first in range(0, n_programs, PARTS):
        part = first + tl.arange(0, PARTS)
        inside = (part < n_programs)[:, None] & (entry < n_entries)[None, :]
        total += tl.load(partial + part[:, None] * n_entries + entry[None, :], mask=inside, other=0.0)
    tl.store(mean + entry, tl.sum(total, 0) / S, mask=entry < n_entries)


@triton.jit
def _backward_kernel(
    logits, bank, of_weights, of_mean, d_logits, S, n_pathways, n_banks,
    BY_BANK: tl.constexpr, TOKENS: tl.constexpr, PATHWAYS: tl.constexpr, BANKS: tl.constexpr,
):  # fmt: skip
    r, at, inside = _probabilities(logits, S, n_pathways, n_banks, TOKENS, PATHWAYS, BANKS)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    p = tl.arange(0, PATHWAYS)
    own_at = token.to(tl.int64)[:, None] * n_pathways + p[None, :]
    there = (token < S)[:, None] & (p < n_pathways)[None, :]
    received = tl.load(of_weights + own_at, mask=there, other=0.0)[:, :, None]
    n = tl.arange(0, BANKS)[None, None, :]
    if BY_BANK:
        own = tl.load(bank + own_at, mask=there, other=0).to(tl.int32)
        received = tl.where(n == own[:, :, None], received, 0.0)
    entry = p[:, None] * n_banks + tl.arange(0, BANKS)[None, :]
    is_entry = (p < n_pathways)[:, None] & (tl.arange(0, BANKS) < n_banks)[None, :]
    shared = tl.load(of_mean + entry, mask=is_entry, other=0.0) / S
    d_r = received + shared[None, :, :]
    along = tl.sum(tl.sum(r * d_r, 2), 1)
    down = r * (d_r - along[:, None, None])
    tl.store(d_logits + at, down.to(d_logits.dtype.element_ty), mask=inside)
