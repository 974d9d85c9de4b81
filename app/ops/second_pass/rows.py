# mypy: allow-untyped-defs
"""Rows of the tokens that take a route, side by side in a buffer with room for all tokens.

How many there are is on the device alone. Grids are those of all tokens; a program beyond the last taker does nothing,
and rows from there on are never read.

Shape suffixes: B batch, T sequence, S tokens (B·T), D width, O features.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from app.ops.bank_kernels import tile_width
from app.ops.layer_norm.triton import COLUMNS, PROGRAMS, TILE, WARPS, _sum_programs_kernel, _warps
from app.ops.layer_norm.vectorized import of_constant_row

# Tokens that one step of the count takes.
TOKENS = 1024
# Tile of the sums of columns, and rows of one sum.
SUM_ROWS, SUM_COLUMNS, ROWS_PER_SUM = 32, 64, 256


class Takers(NamedTuple):
    """Where the rows of the takers stand.

    Attributes:
        order: ``(S,)`` int32, the token at each place, ascending; unwritten from the last taker on.
        rank: ``(S,)`` int32, how many takers stand before each token.
        place: ``(S,)`` int32, the place of each taker, −1 for others.
        starts: ``(B + 1,)`` int32, the place where each window's takers begin, and their number at the end.
    """

    order: Tensor
    rank: Tensor
    place: Tensor
    starts: Tensor

    @property
    def number(self) -> Tensor:
        """``(1,)`` int32."""
        return self.starts[-1:]


def takers(taken: Tensor) -> Takers:
    """Two launches.

    Args:
        taken: ``(B, T)`` bool.
    """
    B, T = taken.shape
    counts, starts, order, rank, place = (
        torch.empty(n, dtype=torch.int32, device=taken.device) for n in (B, B + 1, B * T, B * T, B * T)
    )
    tokens = tile_width(T, TOKENS)
    taken = taken.contiguous().view(torch.uint8)
    _count[(B,)](taken, counts, T, TOKENS=tokens)
    windows = triton.next_power_of_2(B)
    _place[(B,)](taken, counts, order, rank, place, starts, B, T, TOKENS=tokens, WINDOWS=windows)
    return Takers(order, rank, place, starts)


class Norm(NamedTuple):
    """What the backward pass of a norm needs: mean and reciprocal deviation of each row, ``(S,)`` fp32."""

    mean: Tensor
    reciprocal: Tensor


def norm(
    x_SD: Tensor, weight: Tensor, bias: Tensor, eps: float, rows: Takers, dtype: torch.dtype, gather: bool
) -> tuple[Tensor, Norm]:
    """LayerNorm of the takers' rows, by place.

    Args:
        x_SD: contiguous, by place, or by token with ``gather``.
        weight: ``(D)``.
        bias: ``(D)``.
        eps: added to the variance.
        rows: whose.
        dtype: of the result.
        gather: read rows where their tokens lie.
    """
    S, D = x_SD.shape
    y = torch.empty_like(x_SD, dtype=dtype)
    mean, reciprocal = torch.empty(2, S, dtype=torch.float32, device=x_SD.device)
    shape = _tile(D)
    _norm[(triton.cdiv(S, shape["ROWS"]),)](
        x_SD, weight, bias, y, mean, reciprocal, rows.order, rows.number, D, eps, GATHER=gather, **shape
    )
    return y, Norm(mean, reciprocal)


def norm_backward(
    grad_SD: Tensor,
    x_SD: Tensor,
    weight: Tensor,
    kept: Norm,
    eps: float,
    rows: Takers,
    *,
    by_token: bool = False,
    beside: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of the gain and of the bias.

    Args:
        grad_SD: by place.
        x_SD: as in the forward.
        weight: as in the forward.
        kept: by the forward.
        eps: as in the forward.
        rows: whose.
        by_token: x was gathered: its gradient is by token, and ``beside`` where a token is no taker.
        beside: ``(S, D)`` by token, a gradient that goes past the norm: added to that of a taker, unless
            ``by_token``.
    """
    S, D = x_SD.shape
    shape = _tile(D)
    n_programs = min(PROGRAMS, triton.cdiv(S, shape["ROWS"]))
    d_x = torch.empty_like(x_SD)
    sums = torch.empty(2, n_programs, D, dtype=torch.float32, device=x_SD.device)
    d_weight, d_bias = torch.empty(2, D, dtype=torch.float32, device=x_SD.device)
    _norm_backward[(n_programs,)](
        grad_SD, x_SD, weight, *kept, beside, rows.order, rows.place, rows.number, d_x, *sums, S, D,
        of_constant_row(eps, torch.float32), BY_TOKEN=by_token, ADD=beside is not None and not by_token, **shape,
    )  # fmt: skip
    _sum_programs_kernel[(triton.cdiv(D, COLUMNS),)](
        *sums, d_weight, d_bias, n_programs, D, TILE // COLUMNS, COLUMNS, num_warps=WARPS
    )
    return d_x, d_weight.to(weight.dtype), d_bias.to(weight.dtype)


def put(x_SD: Tensor, first_SD: Tensor | None, second_SD: Tensor, rows: Takers) -> Tensor:
    """x by token; where one is a taker, the sum of two rows by place, or of x and one without a first."""
    S, D = x_SD.shape
    y, shape = torch.empty_like(x_SD), _tile(D)
    _put[(triton.cdiv(S, shape["ROWS"]),)](
        x_SD, first_SD, second_SD, y, rows.place, S, D, ONTO=first_SD is None, **shape
    )
    return y


def add(first_SD: Tensor, second_SD: Tensor, rows: Takers) -> Tensor:
    """Sum of two rows by place, in the format of the first."""
    S, D = first_SD.shape
    y, shape = torch.empty_like(first_SD), _tile(D)
    _add[(triton.cdiv(S, shape["ROWS"]),)](first_SD, second_SD, y, rows.number, D, **shape)
    return y


def take(x_SD: Tensor, rows: Takers, dtype: torch.dtype) -> Tensor:
    """Rows of the takers, by place."""
    S, D = x_SD.shape
    y, shape = torch.empty_like(x_SD, dtype=dtype), _tile(D)
    _take[(triton.cdiv(S, shape["ROWS"]),)](x_SD, y, rows.order, rows.number, D, **shape)
    return y


def column_sums(y_SO: Tensor, rows: Takers, dtype: torch.dtype) -> Tensor:
    """``(O)``, sums over the takers of rows by place, in one order."""
    S, n_outputs = y_SO.shape
    n_sums = triton.cdiv(S, ROWS_PER_SUM)
    partial = torch.empty(n_sums, n_outputs, dtype=torch.float32, device=y_SO.device)
    sums = torch.empty(n_outputs, dtype=dtype, device=y_SO.device)
    columns = triton.cdiv(n_outputs, SUM_COLUMNS)
    shape = {"ROWS": SUM_ROWS, "COLUMNS": SUM_COLUMNS, "num_warps": 4}
    _partial_sums[(columns, n_sums)](y_SO, partial, rows.number, n_outputs, PER_SUM=ROWS_PER_SUM, **shape)
    _total_sums[(columns,)](partial, sums, rows.number, n_outputs, PER_SUM=ROWS_PER_SUM, **shape)
    return sums


def _tile(D: int) -> dict[str, int]:
    block = max(16, triton.next_power_of_2(D))
    return {"ROWS": max(1, TILE // block), "BLOCK": block, "num_warps": _warps(block)}


@triton.jit
def _count(taken, counts, T, TOKENS: tl.constexpr):
    total = 0
    for start in range(0, T, TOKENS):
        t = start + tl.arange(0, TOKENS)
        own = tl.load(taken + tl.program_id(0).to(tl.int64) * T + t, mask=t < T, other=0)
        total += tl.sum(own.to(tl.int32), 0)
    tl.store(counts + tl.program_id(0), total)


@triton.jit
def _place(
    taken, counts, order, rank, place, starts, n_windows, T, TOKENS: tl.constexpr, WINDOWS: tl.constexpr
):
    window = tl.program_id(0)
    other = tl.arange(0, WINDOWS)
    counted = tl.load(counts + other, mask=other < n_windows, other=0)
    before = tl.sum(tl.where(other < window, counted, 0), 0)
    tl.store(starts + window, before)
    if window == 0:
        tl.store(starts + n_windows, tl.sum(counted, 0))
    for start in range(0, T, TOKENS):
        t = start + tl.arange(0, TOKENS)
        token = window * T + t
        own = tl.load(taken + token.to(tl.int64), mask=t < T, other=0).to(tl.int32)
        at = before + tl.cumsum(own, 0) - own
        tl.store(rank + token, at, mask=t < T)
        tl.store(place + token, tl.where(own > 0, at, -1), mask=t < T)
        tl.store(order + at, token, mask=own > 0)
        before += tl.sum(own, 0)


@triton.jit
def _rows_of_tile(first, n, D, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = first + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    inside = (row < n)[:, None] & (channel < D)[None, :]
    return row, channel, row.to(tl.int64)[:, None] * D + channel[None, :], inside


@triton.jit
def _norm(
    x, weight, bias, y, mean_of, reciprocal_of, order, number, D, eps,
    GATHER: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n, first = tl.load(number), tl.program_id(0) * ROWS
    if first >= n:
        return
    row, channel, at, inside = _rows_of_tile(first, n, D, ROWS, BLOCK)
    source = at
    if GATHER:
        token = tl.load(order + row, mask=row < n, other=0)
        source = token.to(tl.int64)[:, None] * D + channel[None, :]
    value = tl.load(x + source, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(value, 1) / D
    centred = tl.where(inside, value - mean[:, None], 0.0)
    reciprocal = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / D + eps)
    gain = tl.load(weight + channel, mask=channel < D, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=channel < D, other=0.0).to(tl.float32)
    normed = centred * reciprocal[:, None] * gain[None, :] + shift[None, :]
    tl.store(y + at, normed.to(y.dtype.element_ty), mask=inside)
    tl.store(mean_of + row, mean, mask=row < n)
    tl.store(reciprocal_of + row, reciprocal, mask=row < n)


@triton.jit
def _norm_backward(
    grad, x, weight, mean_of, reciprocal_of, beside, order, place, number, d_x, d_weights, d_biases, S, D, constant,
    BY_TOKEN: tl.constexpr, ADD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = S if BY_TOKEN else tl.load(number)
    gain = tl.load(weight + tl.arange(0, BLOCK), mask=tl.arange(0, BLOCK) < D, other=0.0).to(tl.float32)
    d_weight = tl.zeros([BLOCK], tl.float32)
    d_bias = tl.zeros([BLOCK], tl.float32)
    for first in range(tl.program_id(0) * ROWS, n, tl.num_programs(0) * ROWS):
        row, channel, at, inside = _rows_of_tile(first, n, D, ROWS, BLOCK)
        own, is_taker, taken = row, row < n, inside
        if BY_TOKEN:
            own = tl.load(place + row, mask=row < n, other=-1)
            is_taker = own >= 0
            taken = is_taker[:, None] & (channel < D)[None, :]
        upstream = own.to(tl.int64)[:, None] * D + channel[None, :]
        gradient = tl.load(grad + upstream, mask=taken, other=0.0).to(tl.float32)
        value = tl.load(x + at, mask=taken, other=0.0).to(tl.float32)
        mean = tl.load(mean_of + own, mask=is_taker, other=0.0)
        reciprocal = tl.load(reciprocal_of + own, mask=is_taker, other=0.0)
        # PyTorch's gradient of the gain takes the same factor, so that a constant row has none either.
        factor = tl.where(reciprocal < constant, reciprocal, 0.0)
        z = tl.where(taken, (value - mean[:, None]) * factor[:, None], 0.0)
        d_weight += tl.sum(gradient * z, 0)
        d_bias += tl.sum(gradient, 0)
        d_z = gradient * gain[None, :]
        along = tl.sum(d_z * z, 1) / D
        level = tl.sum(d_z, 1) / D
        down = (d_z - level[:, None] - z * along[:, None]) * factor[:, None]
        if BY_TOKEN:
            past = tl.load(beside + at, mask=inside & (own < 0)[:, None], other=0.0).to(tl.float32)
            down = tl.where(taken, down, past)
        if ADD:
            token = tl.load(order + row, mask=row < n, other=0)
            past_at = token.to(tl.int64)[:, None] * D + channel[None, :]
            down += tl.load(beside + past_at, mask=inside, other=0.0).to(tl.float32)
        tl.store(d_x + at, down.to(d_x.dtype.element_ty), mask=inside)
    channel = tl.arange(0, BLOCK)
    tl.store(d_weights + tl.program_id(0) * D + channel, d_weight, mask=channel < D)
    tl.store(d_biases + tl.program_id(0) * D + channel, d_bias, mask=channel < D)


@triton.jit
def _put(x, first, second, y, place, S, D, ONTO: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row, channel, at, inside = _rows_of_tile(tl.program_id(0) * ROWS, S, D, ROWS, BLOCK)
    own = tl.load(place + row, mask=row < S, other=-1)
    taken = (own >= 0)[:, None] & (channel < D)[None, :]
    from_row = own.to(tl.int64)[:, None] * D + channel[None, :]
    is_read = inside
    if not ONTO:
        is_read = inside & (own < 0)[:, None]
    total = tl.load(x + at, mask=is_read, other=0.0).to(tl.float32)
    total += tl.load(second + from_row, mask=taken, other=0.0).to(tl.float32)
    if not ONTO:
        total += tl.load(first + from_row, mask=taken, other=0.0).to(tl.float32)
    tl.store(y + at, total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _add(first, second, y, number, D, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    n, start = tl.load(number), tl.program_id(0) * ROWS
    if start >= n:
        return
    _, _, at, inside = _rows_of_tile(start, n, D, ROWS, BLOCK)
    total = tl.load(first + at, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(second + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _take(x, y, order, number, D, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    n, start = tl.load(number), tl.program_id(0) * ROWS
    if start >= n:
        return
    row, channel, at, inside = _rows_of_tile(start, n, D, ROWS, BLOCK)
    token = tl.load(order + row, mask=row < n, other=0)
    value = tl.load(x + token.to(tl.int64)[:, None] * D + channel[None, :], mask=inside, other=0.0)
    tl.store(y + at, value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _partial_sums(
    y, partial, number, n_outputs, PER_SUM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    n, first = tl.load(number), tl.program_id(1) * PER_SUM
    if first >= n:
        return
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(first, tl.minimum(first + PER_SUM, n), ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < n)[:, None] & (column < n_outputs)[None, :]
        at = row.to(tl.int64)[:, None] * n_outputs + column[None, :]
        total += tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(partial + tl.program_id(1) * n_outputs + column, tl.sum(total, 0), mask=column < n_outputs)


@triton.jit
def _total_sums(
    partial, sums, number, n_outputs, PER_SUM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    n_sums = (tl.load(number) + PER_SUM - 1) // PER_SUM
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, n_sums, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < n_sums)[:, None] & (column < n_outputs)[None, :]
        total += tl.load(partial + row[:, None] * n_outputs + column[None, :], mask=inside, other=0.0)
    tl.store(sums + column, tl.sum(total, 0).to(sums.dtype.element_ty), mask=column < n_outputs)
