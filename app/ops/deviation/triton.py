# mypy: allow-untyped-defs
"""Form of the deviation for GPUs: one read of x for distances and sums, added up in one order.

Shape suffixes: S tokens (B·T), D width.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from app.ops.bank_kernels import PROGRAMS, tile_width
from app.ops.deviation import naive

# The widest rows that fit into registers beside mean, deviation and both sums, and numbers of a tile.
WIDEST, TILE, WARPS = 2048, 2048, 4
# Partial sums that one step of the second launch adds, and channels of one of its programs.
PARTS, CHANNELS = 32, 32


class _Deviation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_SD: Tensor, mean: Tensor, variance: Tensor, with_sums: bool
    ) -> tuple[Tensor, Tensor | None]:
        S, D = x_SD.shape
        shape = _tile(D)
        # A multiple of a tile's tokens for each program, and no more programs than fill the GPU.
        per_program = shape["TOKENS"] * triton.cdiv(S, PROGRAMS * shape["TOKENS"])
        n_programs = triton.cdiv(S, per_program)
        distance = torch.empty(S, dtype=torch.float32, device=x_SD.device)
        partial, sums = None, None
        if with_sums:
            partial = torch.empty(n_programs, 2, D, dtype=torch.float32, device=x_SD.device)
        _forward_kernel[(n_programs,)](
            x_SD, mean, variance, distance, partial, S, D, per_program, naive.EPSILON, with_sums, **shape
        )
        if with_sums:
            sums = torch.empty(2, D, dtype=torch.float32, device=x_SD.device)
            grid = (triton.cdiv(2 * D, CHANNELS),)
            _add_up[grid](partial, sums, n_programs, 2 * D, PARTS=PARTS, CHANNELS=CHANNELS)
            ctx.mark_non_differentiable(sums)
        if ctx.needs_input_grad[0]:
            # What is usual moves before the backward pass where another forward comes first.
            ctx.save_for_backward(x_SD, mean.clone(), variance.clone(), distance)
        return distance, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_SD, mean, variance, distance = ctx.saved_tensors
        S, D = x_SD.shape
        dx, shape = torch.empty_like(x_SD), _tile(D)
        _backward_kernel[(triton.cdiv(S, shape["TOKENS"]),)](
            gradients[0].contiguous(), x_SD, mean, variance, distance, dx, S, D, naive.EPSILON, **shape
        )
        return dx, None, None, None


def _tile(D: int) -> dict[str, int]:
    block = tile_width(D, WIDEST)
    return {"TOKENS": max(1, TILE // block), "BLOCK": block, "num_warps": WARPS}


def deviation(
    x: Tensor, mean: Tensor, variance: Tensor, with_sums: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Distances and sums; see :func:`app.ops.deviation.deviation`."""
    D = x.shape[-1]
    if D > WIDEST or mean.dtype != torch.float32:
        return naive.deviation(x, mean, variance, with_sums)
    with torch.cuda.device_of(x):
        distance, sums = _Deviation.apply(x.reshape(-1, D).contiguous(), mean, variance, with_sums)
    return distance.view(x.shape[:-1]), sums


@triton.jit
def _usual(mean, variance, channel, D, epsilon):
    mu = tl.load(mean + channel, mask=channel < D, other=0.0)
    spread = tl.sqrt(tl.load(variance + channel, mask=channel < D, other=1.0)) + epsilon
    return mu, spread


@triton.jit
def _forward_kernel(
    x, mean, variance, distance, partial, S, D, per_program, epsilon,
    WITH_SUMS: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    channel = tl.arange(0, BLOCK)
    mu, spread = _usual(mean, variance, channel, D, epsilon)
    sums = tl.zeros([TOKENS, BLOCK], tl.float32)
    squares = tl.zeros([TOKENS, BLOCK], tl.float32)
    first = tl.program_id(0) * per_program
    for start in range(first, tl.minimum(first + per_program, S), TOKENS):
        token = start + tl.arange(0, TOKENS)
        inside = (token < S)[:, None] & (channel < D)[None, :]
        at = token.to(tl.int64)[:, None] * D + channel[None, :]
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        shifted = tl.where(inside, value - mu[None, :], 0.0)
        if WITH_SUMS:
            sums += shifted
            squares += shifted * shifted
        scaled = shifted / spread[None, :]
        tl.store(distance + token, tl.sqrt(tl.sum(scaled * scaled, 1) / D), mask=token < S)
    if WITH_SUMS:
        to = partial + tl.program_id(0).to(tl.int64) * 2 * D + channel
        tl.store(to, tl.sum(sums, 0), mask=channel < D)
        tl.store(to + D, tl.sum(squares, 0), mask=channel < D)


@triton.jit
def _add_up(partial, sums, n_programs, width, PARTS: tl.constexpr, CHANNELS: tl.constexpr):
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros([PARTS, CHANNELS], tl.float32)
    for start in range(0, n_programs, PARTS):
        part = start + tl.arange(0, PARTS)
        inside = (part < n_programs)[:, None] & (channel < width)[None, :]
        total += tl.load(partial + part[:, None] * width + channel[None, :], mask=inside, other=0.0)
    tl.store(sums + channel, tl.sum(total, 0), mask=channel < width)


@triton.jit
def _backward_kernel(
    grad, x, mean, variance, distance, dx, S, D, epsilon, TOKENS: tl.constexpr, BLOCK: tl.constexpr
):
    channel = tl.arange(0, BLOCK)
    mu, spread = _usual(mean, variance, channel, D, epsilon)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    inside = (token < S)[:, None] & (channel < D)[None, :]
    at = token.to(tl.int64)[:, None] * D + channel[None, :]
    g = tl.load(grad + token, mask=token < S, other=0.0).to(tl.float32)
    d = tl.load(distance + token, mask=token < S, other=0.0)
    # A token that is the mean itself has no direction to go in.
    factor = tl.where(d > 0, g / (tl.where(d > 0, d, 1.0) * D), 0.0)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    down = factor[:, None] * (value - mu[None, :]) / (spread * spread)[None, :]
    tl.store(dx + at, down.to(dx.dtype.element_ty), mask=inside)
