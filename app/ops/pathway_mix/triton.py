"""Form of the mixture for GPUs: a launch each way, in which every number is read and written once.

Shape suffixes: S tokens (B·T), P pathways, D width.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from app.ops.pathway_mix import vectorized

# Pathways that the kernels have an argument for.
MOST_PATHWAYS = 5
# Numbers of a tile, 16 of each thread, and the most channels of one.
TILE, WIDEST = 2048, 512
WARPS = 4


@triton.jit
def _read(x_SD, token, channel, S, D):
    inside = (token < S)[:, None] & (channel < D)[None, :]
    at = tl.cast(token, tl.int64)[:, None] * D + channel[None, :]
    return tl.load(x_SD + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _write(x_SD, value, token, channel, S, D):
    inside = (token < S)[:, None] & (channel < D)[None, :]
    tl.store(x_SD + tl.cast(token, tl.int64)[:, None] * D + channel[None, :], value, mask=inside)


@triton.jit
def _forward_kernel(
    weights_SP, y0, y1, y2, y3, y4, mixed, S, D, P: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr
):
    outputs = (y0, y1, y2, y3, y4)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([TOKENS, BLOCK], tl.float32)
    for p in tl.static_range(P):
        weight = tl.load(weights_SP + tl.cast(token, tl.int64) * P + p, mask=token < S, other=0.0)
        total += weight.to(tl.float32)[:, None] * _read(outputs[p], token, channel, S, D)
    _write(mixed, total, token, channel, S, D)


@triton.jit
def _backward_kernel(
    grad,
    weights_SP,
    y0,
    y1,
    y2,
    y3,
    y4,
    d_weights_SP,
    d0,
    d1,
    d2,
    d3,
    d4,
    S,
    D,
    P: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    outputs = (y0, y1, y2, y3, y4)
    gradients = (d0, d1, d2, d3, d4)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    weights = ()
    sums = ()
    for p in tl.static_range(P):
        weight = tl.load(weights_SP + tl.cast(token, tl.int64) * P + p, mask=token < S, other=0.0)
        weights = weights + (weight.to(tl.float32),)
        sums = sums + (tl.zeros([TOKENS], tl.float32),)
    for first in range(0, D, BLOCK):
        channel = first + tl.arange(0, BLOCK)
        gradient = _read(grad, token, channel, S, D)
        new_sums = ()
        for p in tl.static_range(P):
            product = gradient * _read(outputs[p], token, channel, S, D)
            new_sums = new_sums + (sums[p] + tl.sum(product, 1),)
            _write(gradients[p], gradient * weights[p][:, None], token, channel, S, D)
        sums = new_sums
    for p in tl.static_range(P):
        tl.store(d_weights_SP + tl.cast(token, tl.int64) * P + p, sums[p], mask=token < S)


class _PathwayMix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights_SP: Tensor, *outputs_SD: Tensor) -> Tensor:
        weights_SP = weights_SP.contiguous()
        outputs_SD = tuple(output.contiguous() for output in outputs_SD)
        ctx.save_for_backward(weights_SP, *outputs_SD)
        dtype = reduce(torch.promote_types, (output.dtype for output in outputs_SD), weights_SP.dtype)
        mixed = torch.empty_like(outputs_SD[0], dtype=dtype)
        S, D = mixed.shape
        tokens, block = _tile(D)
        _forward_kernel[(triton.cdiv(S, tokens), triton.cdiv(D, block))](
            weights_SP, *_five(outputs_SD), mixed, S, D, len(outputs_SD), tokens, block, num_warps=WARPS
        )
        return mixed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        weights_SP, *outputs_SD = ctx.saved_tensors
        d_weights = torch.empty_like(weights_SP)
        d_outputs = [torch.empty_like(output) for output in outputs_SD]
        S, D = grad.shape
        tokens, block = _tile(D)
        _backward_kernel[(triton.cdiv(S, tokens),)](
            grad.contiguous(),
            weights_SP,
            *_five(outputs_SD),
            d_weights,
            *_five(d_outputs),
            S,
            D,
            len(outputs_SD),
            tokens,
            block,
            num_warps=WARPS,
        )
        return d_weights, *d_outputs


def _tile(D: int) -> tuple[int, int]:
    """Tokens and channels of a tile."""
    block = min(WIDEST, max(16, triton.next_power_of_2(D)))
    return TILE // block, block


def _five(tensors: Sequence[Tensor]) -> list[Tensor]:
    """One for each argument of a kernel, which looks at the first P."""
    return [*tensors, *[tensors[0]] * (MOST_PATHWAYS - len(tensors))]


def pathway_mix(weights: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """``Σ_p w_p · y_p``; see :func:`app.ops.pathway_mix.pathway_mix`."""
    if len(outputs) > MOST_PATHWAYS or torch.float64 in {output.dtype for output in outputs}:
        return vectorized.pathway_mix(weights, outputs)
    shape = outputs[0].shape
    rows = [output.reshape(-1, shape[-1]) for output in outputs]
    mixed: Tensor = _PathwayMix.apply(weights.reshape(-1, len(outputs)), *rows)
    return mixed.view(shape)
