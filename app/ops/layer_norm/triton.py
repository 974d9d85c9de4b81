"""Form of LayerNorm for GPUs: every number is read and written once each way.

Shape suffixes: S rows, D width.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from app.ops.layer_norm import vectorized
from app.ops.layer_norm.vectorized import format_of, of_constant_row

# Numbers of a tile, 16 of each thread, and the widest row that fits.
TILE, WIDEST = 2048, 8192
# Programs of the backward, each with rows and sums of its own; the same on every GPU, so that sums have
# one order.
PROGRAMS = 512
# Channels of a program that adds these sums up.
COLUMNS = 32
WARPS = 4


@triton.jit
def _tile_of(x_SD, row, channel, S, D):
    inside = (row < S)[:, None] & (channel < D)[None, :]
    at = tl.cast(row, tl.int64)[:, None] * D + channel[None, :]
    return tl.load(x_SD + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _forward_kernel(
    x_SD,
    weight_D,
    bias_D,
    y_SD,
    mean_S,
    reciprocal_S,
    S,
    D,
    eps,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    inside = (row < S)[:, None] & (channel < D)[None, :]
    x = _tile_of(x_SD, row, channel, S, D)
    mean = tl.sum(x, 1) / D
    centred = tl.where(inside, x - mean[:, None], 0.0)
    reciprocal = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / D + eps)
    y = centred * reciprocal[:, None]
    if HAS_WEIGHT:
        y *= tl.load(weight_D + channel, mask=channel < D, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        y += tl.load(bias_D + channel, mask=channel < D, other=0.0).to(tl.float32)[None, :]
    tl.store(y_SD + tl.cast(row, tl.int64)[:, None] * D + channel[None, :], y, mask=inside)
    tl.store(mean_S + row, mean, mask=row < S)
    tl.store(reciprocal_S + row, reciprocal, mask=row < S)


@triton.jit
def _backward_kernel(
    grad_SD,
    x_SD,
    weight_D,
    mean_S,
    reciprocal_S,
    d_x_SD,
    d_weights_PD,
    d_biases_PD,
    S,
    D,
    constant,
    HAS_WEIGHT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    channel = tl.arange(0, BLOCK)
    weight = tl.full([BLOCK], 1.0, tl.float32)
    if HAS_WEIGHT:
        weight = tl.load(weight_D + channel, mask=channel < D, other=0.0).to(tl.float32)
    d_weight = tl.zeros([BLOCK], tl.float32)
    d_bias = tl.zeros([BLOCK], tl.float32)
    for first in range(program * ROWS, S, tl.num_programs(0) * ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < S)[:, None] & (channel < D)[None, :]
        gradient = _tile_of(grad_SD, row, channel, S, D)
        x = _tile_of(x_SD, row, channel, S, D)
        mean = tl.load(mean_S + row, mask=row < S, other=0.0)
        reciprocal = tl.load(reciprocal_S + row, mask=row < S, other=0.0)
        # PyTorch's gradient of the gain takes the same factor, so that a constant row has none either.
        factor = tl.where(reciprocal < constant, reciprocal, 0.0)
        z = tl.where(inside, (x - mean[:, None]) * factor[:, None], 0.0)
        d_weight += tl.sum(gradient * z, 0)
        d_bias += tl.sum(gradient, 0)
        d_z = gradient * weight[None, :]
        along = tl.sum(d_z * z, 1) / D
        level = tl.sum(d_z, 1) / D
        d_x = (d_z - level[:, None] - z * along[:, None]) * factor[:, None]
        tl.store(d_x_SD + tl.cast(row, tl.int64)[:, None] * D + channel[None, :], d_x, mask=inside)
    tl.store(d_weights_PD + program * D + channel, d_weight, mask=channel < D)
    tl.store(d_biases_PD + program * D + channel, d_bias, mask=channel < D)


@triton.jit
def _sum_programs_kernel(
    d_weights_PD,
    d_biases_PD,
    d_weight_D,
    d_bias_D,
    P,
    D,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    channel = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    d_weight = tl.zeros([ROWS, COLUMNS], tl.float32)
    d_bias = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, P, ROWS):
        program = first + tl.arange(0, ROWS)
        d_weight += _tile_of(d_weights_PD, program, channel, P, D)
        d_bias += _tile_of(d_biases_PD, program, channel, P, D)
    tl.store(d_weight_D + channel, tl.sum(d_weight, 0), mask=channel < D)
    tl.store(d_bias_D + channel, tl.sum(d_bias, 0), mask=channel < D)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_SD: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype
    ) -> Tensor:
        x_SD = x_SD.contiguous()
        S, D = x_SD.shape
        y_SD = torch.empty_like(x_SD, dtype=dtype)
        mean, reciprocal = x_SD.new_empty(2, S, dtype=torch.float32)
        rows, block = _tile(D)
        _forward_kernel[(triton.cdiv(S, rows),)](
            x_SD,
            x_SD if weight is None else weight.contiguous(),
            x_SD if bias is None else bias.contiguous(),
            y_SD,
            mean,
            reciprocal,
            S,
            D,
            eps,
            weight is not None,
            bias is not None,
            rows,
            block,
            num_warps=_warps(block),
        )
        ctx.eps = eps
        ctx.dtypes = [None if parameter is None else parameter.dtype for parameter in (weight, bias)]
        ctx.save_for_backward(x_SD, weight, mean, reciprocal)
        return y_SD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_SD, weight, mean, reciprocal = ctx.saved_tensors
        S, D = x_SD.shape
        rows, block = _tile(D)
        n_programs = min(PROGRAMS, triton.cdiv(S, rows))
        d_x_SD = torch.empty_like(x_SD)
        sums_PD = x_SD.new_empty(2, n_programs, D, dtype=torch.float32)
        d_parameters = x_SD.new_empty(2, D, dtype=torch.float32)
        _backward_kernel[(n_programs,)](
            gradients[0].contiguous(),
            x_SD,
            x_SD if weight is None else weight.contiguous(),
            mean,
            reciprocal,
            d_x_SD,
            *sums_PD,
            S,
            D,
            of_constant_row(ctx.eps, torch.float32),
            weight is not None,
            rows,
            block,
            num_warps=_warps(block),
        )
        _sum_programs_kernel[(triton.cdiv(D, COLUMNS),)](
            *sums_PD, *d_parameters, n_programs, D, TILE // COLUMNS, COLUMNS, num_warps=WARPS
        )
        of_parameters = [
            None if dtype is None else gradient.to(dtype)
            for gradient, dtype in zip(d_parameters, ctx.dtypes, strict=True)
        ]
        return d_x_SD, *of_parameters, None, None


def _tile(D: int) -> tuple[int, int]:
    """Rows and channels of a tile."""
    block = max(16, triton.next_power_of_2(D))
    return max(1, TILE // block), block


def _warps(block: int) -> int:
    return max(WARPS, block // 512)


def layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype | None = None
) -> Tensor:
    """``(x − mean x) / √(var x + ε)``; see :func:`app.ops.layer_norm.layer_norm`."""
    if x.shape[-1] > WIDEST:
        return vectorized.layer_norm(x, weight, bias, eps, dtype)
    y: Tensor = _LayerNorm.apply(x.reshape(-1, x.shape[-1]), weight, bias, eps, dtype or format_of(x))
    return y.view(x.shape)
