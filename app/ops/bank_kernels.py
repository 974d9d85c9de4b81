# mypy: allow-untyped-defs
"""Kernels that several operators share: tokens grouped by bank, and products of each group with its bank's weight.

Every grid follows from the number of tokens and banks alone, so that nothing waits for the device and a CUDA graph can
hold the launches. A bank's rows are cut into blocks; a program finds the bank and the rows of its block in ``ends``,
and a block that no bank needs does nothing. No sum depends on the order in which programs run. Block shapes are tables
by number format and size, made for Hopper GPUs; never are they the outcome of a timing.

Shape suffixes: S tokens, N banks, O and I output and input features.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Programs that fill a Hopper GPU twice over: 132 multiprocessors.
PROGRAMS = 264
# Tokens that one program of the sort takes, and how often a token meets a bank there: more do not fit on chip.
TOKENS_PER_BLOCK = 1024
MEETINGS_PER_BLOCK = 2**13
# Elements of the weight gradient that one program adds up.
ELEMENTS_PER_BLOCK = 1024


class Blocks(NamedTuple):
    """Shape of the tile of one program, and what the compiler is to do with it."""

    rows: int
    outputs: int
    inputs: int
    n_warps: int
    n_stages: int


class Groups(NamedTuple):
    """Tokens in the order of their banks.

    Attributes:
        order: ``(S,)`` int32, the token at each place, those of a bank in their own order; None for one bank.
        ends: ``(N,)`` int32, the place where each bank's tokens end.
    """

    order: Tensor | None
    ends: Tensor


def tile_width(n: int, most: int) -> int:
    """The power of two that covers n, from 16 on, which is what a product of tiles takes, to ``most``."""
    return min(most, max(16, triton.next_power_of_2(n)))


def precision(dtype: torch.dtype) -> str:
    """How the tensor cores take fp32: not at all, for tf32 keeps ten bits; other formats have one way only."""
    return "ieee" if dtype == torch.float32 else "tf32"


def group_by_bank(bank_S: Tensor, n_banks: int) -> Groups:
    """A counting sort: two launches, stable.

    Args:
        bank_S: int64 in [0, N).
        n_banks: N.
    """
    n_tokens, device = bank_S.shape[0], bank_S.device
    if n_banks == 1:
        return Groups(None, torch.full((1,), n_tokens, dtype=torch.int32, device=device))
    n_padded = triton.next_power_of_2(n_banks)
    n_per_block = max(16, min(TOKENS_PER_BLOCK, MEETINGS_PER_BLOCK // n_padded))
    n_blocks = max(1, triton.cdiv(n_tokens, n_per_block))
    counts = torch.empty(n_blocks, n_banks, dtype=torch.int32, device=device)
    order = torch.empty(n_tokens, dtype=torch.int32, device=device)
    ends = torch.empty(n_banks, dtype=torch.int32, device=device)
    shape = {"BLOCK": n_per_block, "BANKS": n_padded, "num_warps": 8}
    _count[(n_blocks,)](bank_S, counts, n_tokens, n_banks, **shape)
    _place[(n_blocks,)](bank_S, counts, order, ends, n_tokens, n_banks, n_blocks, **shape)
    return Groups(order, ends)


def grouped_linear(
    x_SI: Tensor,
    weight_NOI: Tensor,
    groups: Groups,
    *,
    gather: bool = False,
    scatter: bool = False,
    dtype: torch.dtype | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """``x W[n]ᵀ + b[n]`` for every row by the weight of its bank, ``(S, O)``.

    Args:
        x_SI: contiguous; rows in the order of banks, or of tokens with ``gather``.
        weight_NOI: in any layout, so that a transposed view costs nothing.
        groups: whose rows they are.
        gather: read rows of x where their tokens lie.
        scatter: write rows where their tokens lie.
        dtype: of the result, that of x by default.
        bias: ``(N, O)`` contiguous, or none.
    """
    y = x_SI.new_empty(x_SI.shape[0], weight_NOI.shape[1], dtype=dtype or x_SI.dtype)
    _launch_linear(x_SI, weight_NOI, groups, y, gather=gather, scatter=scatter, bias=bias)
    return y


def grouped_linear_gelu(
    x_SI: Tensor, weight_NOI: Tensor, groups: Groups, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``u = x W[n]ᵀ + b[n]`` and ``gelu(u)``, rows in the order of banks, for x in the order of tokens."""
    hidden, active = (x_SI.new_empty(x_SI.shape[0], weight_NOI.shape[1]) for _ in range(2))
    _launch_linear(x_SI, weight_NOI, groups, hidden, gather=True, active=active, bias=bias)
    return hidden, active


def grouped_linear_gelu_backward(
    x_SI: Tensor, weight_NOI: Tensor, hidden_SO: Tensor, groups: Groups
) -> tuple[Tensor, Tensor]:
    """``(x W[n]ᵀ) ⊙ gelu'(u)`` and ``gelu(u)`` once more, rows in the order of banks, for x in that of tokens."""
    d_hidden, active = torch.empty_like(hidden_SO), torch.empty_like(hidden_SO)
    _launch_linear(x_SI, weight_NOI, groups, d_hidden, gather=True, active=active, hidden=hidden_SO)
    return d_hidden, active


def _launch_linear(
    x_SI: Tensor,
    weight_NOI: Tensor,
    groups: Groups,
    y_SO: Tensor,
    *,
    gather: bool = False,
    scatter: bool = False,
    active: Tensor | None = None,
    hidden: Tensor | None = None,
    bias: Tensor | None = None,
) -> None:
    n_rows, (n_banks, n_outputs, n_inputs) = x_SI.shape[0], weight_NOI.shape
    blocks = _linear_blocks(n_rows, n_outputs, n_inputs, x_SI.dtype)
    grid = (triton.cdiv(n_outputs, blocks.outputs), n_rows // blocks.rows + n_banks)
    _linear[grid](
        x_SI,
        weight_NOI,
        bias,
        y_SO,
        active,
        hidden,
        groups.order,
        groups.ends,
        n_banks,
        n_outputs,
        n_inputs,
        *weight_NOI.stride(),
        GATHER=gather and groups.order is not None,
        SCATTER=scatter and groups.order is not None,
        BIAS=bias is not None,
        ACTIVE=active is not None,
        BACKWARD=hidden is not None,
        PRECISION=precision(x_SI.dtype),
        ROWS=blocks.rows,
        OUTPUTS=blocks.outputs,
        INPUTS=blocks.inputs,
        num_warps=blocks.n_warps,
        num_stages=blocks.n_stages,
    )


def _linear_blocks(n_rows: int, n_outputs: int, n_inputs: int, dtype: torch.dtype) -> Blocks:
    if dtype == torch.float32:  # no tensor cores: a small tile, for it lies in registers
        return Blocks(64, tile_width(n_outputs, 64), tile_width(n_inputs, 32), 4, 2)
    if n_rows < 8192:  # more programs rather than larger ones
        return Blocks(64, tile_width(n_outputs, 64), tile_width(n_inputs, 64), 4, 3)
    return Blocks(128, tile_width(n_outputs, 128), tile_width(n_inputs, 64), 8, 3)


def grouped_outer(
    y_SO: Tensor,
    x_SI: Tensor,
    groups: Groups,
    dtype: torch.dtype,
    *,
    gather_y: bool = False,
    gather_x: bool = False,
    most_rows: int = 4096,
) -> Tensor:
    """``Σ y xᵀ`` over the rows of each bank, ``(N, O, I)``; zeros for a bank without rows.

    Two launches: sums over blocks of rows, then over the blocks of a bank in their order.

    Args:
        y_SO: contiguous; rows in the order of banks, or of tokens with ``gather_y``.
        x_SI: the same, with ``gather_x``.
        groups: whose rows they are.
        dtype: of the result; sums are made in fp32.
        gather_y: read rows of y where their tokens lie.
        gather_x: read rows of x where their tokens lie.
        most_rows: of one sum; fewer of them where most rows belong to no bank.
    """
    (n_rows, n_outputs), n_inputs, n_banks = y_SO.shape, x_SI.shape[1], groups.ends.shape[0]
    blocks = _outer_blocks(n_outputs, n_inputs, x_SI.dtype)
    tiles = triton.cdiv(n_inputs, blocks.inputs), triton.cdiv(n_outputs, blocks.outputs)
    # Enough programs for the GPU, and no more partial sums than that takes.
    rows_per_sum = min(
        most_rows, max(256, triton.next_power_of_2(triton.cdiv(n_rows * tiles[0] * tiles[1], PROGRAMS)))
    )
    n_sums = n_rows // rows_per_sum + n_banks
    partial = y_SO.new_empty(n_sums, n_outputs, n_inputs, dtype=torch.float32)
    _outer[(*tiles, n_sums)](
        y_SO,
        x_SI,
        partial,
        groups.order,
        groups.ends,
        n_banks,
        n_outputs,
        n_inputs,
        GATHER_Y=gather_y and groups.order is not None,
        GATHER_X=gather_x and groups.order is not None,
        PRECISION=precision(x_SI.dtype),
        ROWS_PER_SUM=rows_per_sum,
        ROWS=blocks.rows,
        OUTPUTS=blocks.outputs,
        INPUTS=blocks.inputs,
        num_warps=blocks.n_warps,
        num_stages=blocks.n_stages,
    )
    outer = y_SO.new_empty(n_banks, n_outputs, n_inputs, dtype=dtype)
    n_elements = n_outputs * n_inputs
    _add_up[(triton.cdiv(n_elements, ELEMENTS_PER_BLOCK), n_banks)](
        partial, outer, groups.ends, n_elements, ROWS_PER_SUM=rows_per_sum, BLOCK=ELEMENTS_PER_BLOCK
    )
    return outer


def _outer_blocks(n_outputs: int, n_inputs: int, dtype: torch.dtype) -> Blocks:
    if dtype == torch.float32:
        return Blocks(16, tile_width(n_outputs, 64), tile_width(n_inputs, 64), 4, 2)
    return Blocks(64, tile_width(n_outputs, 128), tile_width(n_inputs, 128), 8, 3)


@triton.jit
def _count(bank, counts, n_tokens, n_banks, BLOCK: tl.constexpr, BANKS: tl.constexpr):
    """Tokens of each bank in a block of tokens."""
    block = tl.program_id(0)
    token = block * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, BANKS)
    own = tl.load(bank + token, mask=token < n_tokens, other=-1).to(tl.int32)
    counted = tl.sum((own[:, None] == n[None, :]).to(tl.int32), 0)
    tl.store(counts + block * n_banks + n, counted, mask=n < n_banks)


@triton.jit
def _place(bank, counts, order, ends, n_tokens, n_banks, n_blocks, BLOCK: tl.constexpr, BANKS: tl.constexpr):
    """Writes each token of a block to its place: after all lower banks, and the tokens before it of its own."""
    block = tl.program_id(0)
    token = block * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, BANKS)
    of_bank = tl.full((BANKS,), 0, tl.int32)
    before = tl.full((BANKS,), 0, tl.int32)
    for other in range(n_blocks):
        counted = tl.load(counts + other * n_banks + n, mask=n < n_banks, other=0)
        of_bank += counted
        before += tl.where(other < block, counted, 0)
    end = tl.cumsum(of_bank, 0)
    if block == 0:
        tl.store(ends + n, end, mask=n < n_banks)
    own = tl.load(bank + token, mask=token < n_tokens, other=-1).to(tl.int32)
    is_own = (own[:, None] == n[None, :]).to(tl.int32)
    place = (end - of_bank + before)[None, :] + tl.cumsum(is_own, 0) - 1
    tl.store(order + tl.sum(is_own * place, 1), token, mask=token < n_tokens)


@triton.jit
def _block_of_bank(ends, n_banks, block, ROWS: tl.constexpr):
    """The bank whose rows a block holds, the block's first row and the end of the bank's rows; no rows: 0, 0, 0."""
    bank, first, last = 0, 0, 0
    begin, n_blocks = 0, 0
    for n in range(n_banks):
        end = tl.load(ends + n)
        after = n_blocks + (end - begin + ROWS - 1) // ROWS
        is_here = (block >= n_blocks) & (block < after)
        bank = tl.where(is_here, n, bank)
        first = tl.where(is_here, begin + (block - n_blocks) * ROWS, first)
        last = tl.where(is_here, end, last)
        begin, n_blocks = end, after
    return bank, first, last


@triton.jit
def _linear(
    x,
    weight,
    bias,
    y,
    active,
    hidden,
    order,
    ends,
    n_banks,
    n_outputs,
    n_inputs,
    stride_n,
    stride_o,
    stride_i,
    GATHER: tl.constexpr,
    SCATTER: tl.constexpr,
    BIAS: tl.constexpr,
    ACTIVE: tl.constexpr,
    BACKWARD: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    # Neighbours share rows of x; the weights of all banks stay in the L2 cache.
    tile, block = tl.program_id(0), tl.program_id(1)
    bank, first, last = _block_of_bank(ends, n_banks, block, ROWS)
    if first >= last:
        return
    place = first + tl.arange(0, ROWS)
    is_row = place < last
    x_row, y_row = place, place
    if GATHER or SCATTER:
        token = tl.load(order + place, mask=is_row, other=0)
        if GATHER:
            x_row = token
        if SCATTER:
            y_row = token
    o = tile * OUTPUTS + tl.arange(0, OUTPUTS)
    is_output = o < n_outputs
    x_rows = x + x_row.to(tl.int64)[:, None] * n_inputs
    w_columns = weight + bank.to(tl.int64) * stride_n + o[None, :] * stride_o
    total = tl.full((ROWS, OUTPUTS), 0.0, tl.float32)
    for start in range(0, n_inputs, INPUTS):
        i = start + tl.arange(0, INPUTS)
        is_input = i < n_inputs
        x_tile = tl.load(x_rows + i[None, :], mask=is_row[:, None] & is_input[None, :], other=0.0)
        w_tile = tl.load(
            w_columns + i[:, None] * stride_i, mask=is_input[:, None] & is_output[None, :], other=0.0
        )
        total = tl.dot(x_tile, w_tile, total, input_precision=PRECISION)
    if BIAS:
        total += tl.load(bias + bank * n_outputs + o, mask=is_output, other=0.0).to(tl.float32)[None, :]
    if ACTIVE:
        # Rows lie one after the other. Half a tile at a time, for the tile, its activation and what both are made of do
        # not fit in the registers together.
        HALF: tl.constexpr = OUTPUTS // 2
        left, right = tl.split(tl.permute(tl.reshape(total, (ROWS, 2, HALF)), (0, 2, 1)))
        base = first.to(tl.int64) * n_outputs
        for half in tl.static_range(2):
            o = tile * OUTPUTS + half * HALF + tl.arange(0, HALF)
            at = tl.arange(0, ROWS)[:, None] * n_outputs + o[None, :]
            is_element = is_row[:, None] & (o < n_outputs)[None, :]
            part = left if half == 0 else right
            if BACKWARD:
                u = tl.load(hidden + base + at, mask=is_element, other=0.0).to(tl.float32)
            else:
                # The activation of what is stored, so that the backward finds it again.
                u = part.to(y.dtype.element_ty).to(tl.float32)
            below = 0.5 + 0.5 * tl.math.erf(u * 0.7071067811865476)  # the normal distribution
            if BACKWARD:
                part *= below + u * tl.exp(-0.5 * u * u) * 0.3989422804014327
            tl.store(active + base + at, (u * below).to(active.dtype.element_ty), mask=is_element)
            tl.store(y + base + at, part.to(y.dtype.element_ty), mask=is_element)
    else:
        at = y_row.to(tl.int64)[:, None] * n_outputs + o[None, :]
        tl.store(y + at, total.to(y.dtype.element_ty), mask=is_row[:, None] & is_output[None, :])


@triton.jit
def _outer(
    y,
    x,
    partial,
    order,
    ends,
    n_banks,
    n_outputs,
    n_inputs,
    GATHER_Y: tl.constexpr,
    GATHER_X: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS_PER_SUM: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    """One tile of ``Σ y xᵀ`` over at most ``ROWS_PER_SUM`` rows of one bank."""
    block = tl.program_id(2)
    _, first, last = _block_of_bank(ends, n_banks, block, ROWS_PER_SUM)
    if first >= last:
        return
    last = tl.minimum(last, first + ROWS_PER_SUM)
    i = tl.program_id(0) * INPUTS + tl.arange(0, INPUTS)
    o = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    total = tl.full((OUTPUTS, INPUTS), 0.0, tl.float32)
    for start in range(first, last, ROWS):
        place = start + tl.arange(0, ROWS)
        is_row = place < last
        x_row, y_row = place, place
        if GATHER_X or GATHER_Y:
            token = tl.load(order + place, mask=is_row, other=0)
            if GATHER_X:
                x_row = token
            if GATHER_Y:
                y_row = token
        y_tile = tl.load(
            y + y_row.to(tl.int64)[:, None] * n_outputs + o[None, :],
            mask=is_row[:, None] & (o < n_outputs)[None, :],
            other=0.0,
        )
        x_tile = tl.load(
            x + x_row.to(tl.int64)[:, None] * n_inputs + i[None, :],
            mask=is_row[:, None] & (i < n_inputs)[None, :],
            other=0.0,
        )
        total = tl.dot(tl.trans(y_tile), x_tile, total, input_precision=PRECISION)
    at = (block.to(tl.int64) * n_outputs + o[:, None]) * n_inputs + i[None, :]
    tl.store(partial + at, total, mask=(o < n_outputs)[:, None] & (i < n_inputs)[None, :])


@triton.jit
def _add_up(partial, outer, ends, n_elements, ROWS_PER_SUM: tl.constexpr, BLOCK: tl.constexpr):
    """The sums of one bank's blocks, added in their order."""
    bank = tl.program_id(1)
    begin, first, n_blocks = 0, 0, 0
    for n in range(bank + 1):
        end = tl.load(ends + n)
        first += n_blocks
        n_blocks = (end - begin + ROWS_PER_SUM - 1) // ROWS_PER_SUM
        begin = end
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_element = element < n_elements
    total = tl.full((BLOCK,), 0.0, tl.float32)
    at = partial + tl.cast(first, tl.int64) * n_elements + element
    for _ in range(n_blocks):
        total += tl.load(at, mask=is_element, other=0.0)
        at += n_elements
    at = outer + bank.to(tl.int64) * n_elements + element
    tl.store(at, total.to(outer.dtype.element_ty), mask=is_element)
