"""Forms of the ternary quantisers for GPUs.

A program quantises one chunk of a group of entries that share a scale. A trit needs no quotient: ``|W/α| > 1/2`` is
``|W| > α/2``, and at equality a half rounds to 0, the even side.
"""

from math import prod
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from app.ops.ternary import vectorized

SMALLEST_SCALE = tl.constexpr(vectorized.SMALLEST_SCALE)
# Entries of a group that one program takes whole; larger ones are cut, and summed by a launch of their own.
LARGEST_WHOLE = 2**14
CHUNK, SMALLEST_CHUNK = 2**12, 2**7
ENTRIES_PER_WARP = 2**10
# Partial sums that are added up at a time.
SUMS = tl.constexpr(256)
# What the second axis of a grid may have.
MOST_GROUPS = 65535


@triton.jit
def _read_chunk(x, group_size, CHUNK: tl.constexpr):
    """This program's entries as fp32, zeros beyond the group; where they lie, and which are there."""
    within = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    at = tl.cast(tl.program_id(1), tl.int64) * group_size + within
    return tl.load(x + at, mask=within < group_size, other=0.0).to(tl.float32), at, within < group_size


@triton.jit
def _trits_times_scale(weight, scale):
    trits = tl.where(tl.abs(weight) > 0.5 * scale, tl.where(weight > 0, 1.0, -1.0), 0.0)
    return tl.where(weight == weight, trits * scale, weight)  # what is no number stays none


@triton.jit
def _at_least_smallest(scale):
    return tl.where(scale < SMALLEST_SCALE, SMALLEST_SCALE, scale)


@triton.jit
def _magnitudes_kernel(weight, partial, group_size, n_chunks, CHUNK: tl.constexpr):
    entries, _, _ = _read_chunk(weight, group_size, CHUNK)
    tl.store(partial + tl.program_id(1) * n_chunks + tl.program_id(0), tl.sum(tl.abs(entries), 0))


@triton.jit
def _ternary_kernel(
    weight, partial, quantised, group_size, n_chunks, CHUNK: tl.constexpr, IS_WHOLE: tl.constexpr
):
    entries, at, inside = _read_chunk(weight, group_size, CHUNK)
    if IS_WHOLE:
        total = tl.sum(tl.abs(entries), 0)
    else:
        # Every program adds the same numbers up in the same order.
        sums = tl.zeros([SUMS], tl.float32)
        for first in range(0, n_chunks, SUMS):
            chunk = first + tl.arange(0, SUMS)
            sums += tl.load(partial + tl.program_id(1) * n_chunks + chunk, mask=chunk < n_chunks, other=0.0)
        total = tl.sum(sums, 0)
    scale = _at_least_smallest(total / group_size)
    tl.store(quantised + at, _trits_times_scale(entries, scale), mask=inside)


@triton.jit
def _learned_step_kernel(weight, step, quantised, group_size, CHUNK: tl.constexpr):
    entries, at, inside = _read_chunk(weight, group_size, CHUNK)
    scale = _at_least_smallest(tl.load(step + tl.program_id(1)).to(tl.float32))
    tl.store(quantised + at, _trits_times_scale(entries, scale), mask=inside)


@triton.jit
def _learned_step_gradient_kernel(
    grad, weight, step, d_weight, partial, group_size, n_chunks, CHUNK: tl.constexpr
):
    entries, at, inside = _read_chunk(weight, group_size, CHUNK)
    gradient, _, _ = _read_chunk(grad, group_size, CHUNK)
    scale = _at_least_smallest(tl.load(step + tl.program_id(1)).to(tl.float32))
    is_between = tl.abs(entries) < scale
    sign = tl.where(entries > 0, 1.0, -1.0)
    trits = tl.where(tl.abs(entries) > 0.5 * scale, sign, 0.0)
    slope = tl.where(is_between, trits - entries / scale, sign)
    tl.store(d_weight + at, tl.where(is_between, gradient, 0.0), mask=inside)
    # Beyond the group the gradient is 0.
    tl.store(partial + tl.program_id(1) * n_chunks + tl.program_id(0), tl.sum(gradient * slope, 0))


class _Ternary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, group_size: int) -> Tensor:
        weight = weight.contiguous()
        quantised = torch.empty_like(weight)
        chunk, grid, warps = _launch(weight, group_size)
        partial = torch.empty(grid[1], grid[0], dtype=torch.float32, device=weight.device)
        is_whole = grid[0] == 1
        if not is_whole:
            _magnitudes_kernel[grid](weight, partial, group_size, grid[0], chunk, num_warps=warps)
        _ternary_kernel[grid](
            weight, partial, quantised, group_size, grid[0], chunk, is_whole, num_warps=warps
        )
        return quantised

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _LearnedStepTernary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, step: Tensor) -> Tensor:
        weight, step = weight.contiguous(), step.contiguous()
        ctx.save_for_backward(weight, step)
        quantised = torch.empty_like(weight)
        group_size = weight.numel() // step.numel()
        chunk, grid, warps = _launch(weight, group_size)
        _learned_step_kernel[grid](weight, step, quantised, group_size, chunk, num_warps=warps)
        return quantised

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        weight, step = ctx.saved_tensors
        group_size = weight.numel() // step.numel()
        chunk, grid, warps = _launch(weight, group_size)
        d_weight = torch.empty_like(weight)
        partial = torch.empty(grid[1], grid[0], dtype=torch.float32, device=weight.device)
        _learned_step_gradient_kernel[grid](
            grad.contiguous(), weight, step, d_weight, partial, group_size, grid[0], chunk, num_warps=warps
        )
        d_step = partial.sum(1) * group_size**-0.5
        return d_weight, d_step.view_as(step).to(step.dtype)


def _launch(weight: Tensor, group_size: int) -> tuple[int, tuple[int, int], int]:
    """Entries of a program; the grid, chunks of a group and groups; warps."""
    whole = max(SMALLEST_CHUNK, triton.next_power_of_2(group_size))
    chunk = whole if whole <= LARGEST_WHOLE else CHUNK
    grid = (triton.cdiv(group_size, chunk), weight.numel() // group_size)
    return chunk, grid, max(1, chunk // ENTRIES_PER_WARP)


def ternary(weight: Tensor, dim: tuple[int, ...]) -> Tensor:
    """Ternary weights with one scale over the dimensions ``dim``; see :func:`app.ops.ternary.ternary`."""
    shared = sorted(d % weight.dim() for d in dim)
    n_kept = weight.dim() - len(shared)
    if shared != list(range(n_kept, weight.dim())) or prod(weight.shape[:n_kept]) > MOST_GROUPS:
        return vectorized.ternary(weight, dim)
    quantised: Tensor = _Ternary.apply(weight, prod(weight.shape[n_kept:]))
    return quantised


def learned_step_ternary(weight: Tensor, step: Tensor) -> Tensor:
    """Ternary weights with learned scales; see :func:`app.ops.ternary.learned_step_ternary`."""
    n_kept = sum(size > 1 for size in step.shape)
    if step.shape != weight.shape[:n_kept] + (1,) * (weight.dim() - n_kept) or step.numel() > MOST_GROUPS:
        return vectorized.learned_step_ternary(weight, step)
    quantised: Tensor = _LearnedStepTernary.apply(weight, step)
    return quantised
