"""Form of the banked diagonal state space for GPUs: a block of threads has a few channels of one sequence.

It cuts the sequence into chunks that run side by side, one a row of its tile: each runs from zero, the last states are
passed on, and each runs again from what enters it. The second reading of a few channels comes from the cache.

Shape suffixes: B sequences, T tokens, D channels, N banks, R chunks of a sequence.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from app.ops.banked_diagonal_scan import vectorized

# Chunks whose states are in flight at once while they are passed on.
CARRIED = tl.constexpr(8)
# Four numbers of a tile for each thread.
WARPS = 8
# Banks beyond which states and sums no longer fit into registers.
MOST_BANKS = 8
# Blocks below which a card of 132 multiprocessors has idle ones.
MULTIPROCESSORS = 132
# Partial sums, and their channels, that a program of the last pass takes at a time.
SEQUENCES_PER_SUM, CHANNELS_PER_SUM = 16, 64


class Tiling(NamedTuple):
    """How a block of threads goes through a sequence.

    Attributes:
        rows: R.
        block: channels.
        unroll: steps whose loads are in flight at once.
        length: steps of a chunk, a multiple of ``unroll``.
    """

    rows: int
    block: int
    unroll: int
    length: int


@triton.jit
def _power(decay, length):
    """``decay ** length`` of every channel, of either sign."""
    result = tl.full(decay.shape, 1.0, tl.float32)
    square = decay
    remaining = length
    while remaining > 0:
        result = tl.where(remaining % 2 == 1, result * square, result)
        square = square * square
        remaining = remaining // 2
    return result


@triton.jit
def _read_banks(x_ND, D, channel, N: tl.constexpr):
    """A tuple of N rows ``(BLOCK,)`` fp32."""
    rows = ()
    for n in tl.static_range(N):
        rows = rows + (tl.load(x_ND + n * D + channel, mask=channel < D, other=0.0).to(tl.float32),)
    return rows


@triton.jit
def _read_states(x_RND, row, D, channel, N: tl.constexpr):
    """A tuple of N tiles ``(R, BLOCK)``."""
    states = ()
    for n in tl.static_range(N):
        at = (row * N + n)[:, None] * D + channel[None, :]
        states = states + (tl.load(x_RND + at, mask=(channel < D)[None, :], other=0.0),)
    return states


@triton.jit
def _write_states(x_RND, states, row, D, channel, N: tl.constexpr):
    for n in tl.static_range(N):
        at = (row * N + n)[:, None] * D + channel[None, :]
        tl.store(x_RND + at, states[n], mask=(channel < D)[None, :])


@triton.jit
def _read_tokens(x, t, T, D, channel):
    """Token t of each chunk, ``(R, BLOCK)``; zeros beyond the sequence."""
    inside = (t < T)[:, None] & (channel < D)[None, :]
    return tl.load(x + tl.cast(t, tl.int64)[:, None] * D + channel[None, :], mask=inside, other=0.0)


@triton.jit
def _zeros(N: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    tiles = ()
    for _ in tl.static_range(N):
        tiles = tiles + (tl.zeros([ROWS, BLOCK], tl.float32),)
    return tiles


@triton.jit
def _pass_on(
    left_RND,
    entering_RND,
    decays,
    length,
    D,
    channel,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    BACKWARDS: tl.constexpr,
):
    """What enters each chunk, given what leaves every chunk that nothing enters."""
    # What other threads of this block have written is there after a barrier.
    tl.debug_barrier()
    for n in tl.static_range(N):
        power = _power(decays[n], length)
        carried = tl.zeros(power.shape, tl.float32)
        for first in range(0, ROWS, CARRIED):
            left = ()
            for i in tl.static_range(CARRIED):
                r = ROWS - 1 - first - i if BACKWARDS else first + i
                left = left + (tl.load(left_RND + (r * N + n) * D + channel, mask=channel < D, other=0.0),)
            for i in tl.static_range(CARRIED):
                r = ROWS - 1 - first - i if BACKWARDS else first + i
                tl.store(entering_RND + (r * N + n) * D + channel, carried, mask=channel < D)
                carried = tl.fma(power, carried, left[i])
    tl.debug_barrier()


@triton.jit
def _forward_kernel(
    h,
    decay,
    input_gain,
    output_gain,
    bank,
    y,
    left,
    entering,
    T,
    D,
    length,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.arange(0, ROWS)
    b = tl.cast(tl.program_id(1), tl.int64)
    h += b * T * D
    y += b * T * D
    bank += b * T
    left += b * ROWS * N * D
    entering += b * ROWS * N * D
    decays = _read_banks(decay, D, channel, N)
    z = _zeros(N, ROWS, BLOCK)
    for first in range(0, length, UNROLL):
        tokens = ()
        for u in tl.static_range(UNROLL):
            tokens = tokens + (_read_tokens(h, row * length + first + u, T, D, channel),)
        for u in tl.static_range(UNROLL):
            z = _step(z, decays, tokens[u].to(tl.float32), N)
    _write_states(left, z, row, D, channel, N)
    _pass_on(left, entering, decays, length, D, channel, N, ROWS, False)
    z = _read_states(entering, row, D, channel, N)
    b_gain = _read_banks(input_gain, D, channel, N)
    c_gain = _read_banks(output_gain, D, channel, N)
    for first in range(0, length, UNROLL):
        tokens = ()
        banks = ()
        for u in tl.static_range(UNROLL):
            t = row * length + first + u
            tokens = tokens + (_read_tokens(h, t, T, D, channel),)
            banks = banks + (tl.load(bank + t, mask=t < T, other=0).to(tl.int32),)
        for u in tl.static_range(UNROLL):
            z = _step(z, decays, tokens[u].to(tl.float32), N)
            own = tl.zeros([ROWS, BLOCK], tl.float32)
            for n in tl.static_range(N):
                own = tl.where((banks[u] == n)[:, None], z[n] * (b_gain[n] * c_gain[n])[None, :], own)
            t = row * length + first + u
            inside = (t < T)[:, None] & (channel < D)[None, :]
            tl.store(y + tl.cast(t, tl.int64)[:, None] * D + channel[None, :], own, mask=inside)


@triton.jit
def _step(z, decays, token, N: tl.constexpr):
    """``z_t = a z_{t−1} + h_t`` of every bank."""
    following = ()
    for n in tl.static_range(N):
        following = following + (tl.fma(z[n], tl.broadcast_to(decays[n][None, :], token.shape), token),)
    return following


@triton.jit
def _step_back(zeta, decays, gains, gradient, bank, N: tl.constexpr):
    """``ζ_t = a ζ_{t+1} + [n = n(t)] g dy_t`` of every bank."""
    before = ()
    for n in tl.static_range(N):
        received = tl.where((bank == n)[:, None], gradient * gains[n][None, :], 0.0)
        before = before + (tl.fma(zeta[n], tl.broadcast_to(decays[n][None, :], gradient.shape), received),)
    return before


@triton.jit
def _backward_kernel(
    d_y,
    h,
    decay,
    input_gain,
    output_gain,
    bank,
    d_h,
    partial,
    left,
    entering,
    arriving,
    T,
    D,
    length,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradient of the input, from the last token to the first, then those of decay and gain from first to last."""
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.arange(0, ROWS)
    b = tl.cast(tl.program_id(1), tl.int64)
    d_y += b * T * D
    h += b * T * D
    d_h += b * T * D
    bank += b * T
    left += b * ROWS * N * D
    entering += b * ROWS * N * D
    arriving += b * ROWS * N * D
    partial += b * 2 * N * D
    decays = _read_banks(decay, D, channel, N)
    b_gain = _read_banks(input_gain, D, channel, N)
    c_gain = _read_banks(output_gain, D, channel, N)
    gains = ()
    for n in tl.static_range(N):
        gains = gains + (b_gain[n] * c_gain[n],)
    zeta = _zeros(N, ROWS, BLOCK)
    for first in range(0, length, UNROLL):
        gradients = ()
        banks = ()
        for u in tl.static_range(UNROLL):
            t = row * length + (length - 1 - first - u)
            gradients = gradients + (_read_tokens(d_y, t, T, D, channel),)
            banks = banks + (tl.load(bank + t, mask=t < T, other=0).to(tl.int32),)
        for u in tl.static_range(UNROLL):
            zeta = _step_back(zeta, decays, gains, gradients[u].to(tl.float32), banks[u], N)
    _write_states(left, zeta, row, D, channel, N)
    _pass_on(left, arriving, decays, length, D, channel, N, ROWS, True)
    zeta = _read_states(arriving, row, D, channel, N)
    for first in range(0, length, UNROLL):
        gradients = ()
        banks = ()
        for u in tl.static_range(UNROLL):
            t = row * length + (length - 1 - first - u)
            gradients = gradients + (_read_tokens(d_y, t, T, D, channel),)
            banks = banks + (tl.load(bank + t, mask=t < T, other=0).to(tl.int32),)
        for u in tl.static_range(UNROLL):
            zeta = _step_back(zeta, decays, gains, gradients[u].to(tl.float32), banks[u], N)
            total = zeta[0]
            for n in tl.static_range(1, N):
                total += zeta[n]
            t = row * length + (length - 1 - first - u)
            inside = (t < T)[:, None] & (channel < D)[None, :]
            tl.store(d_h + tl.cast(t, tl.int64)[:, None] * D + channel[None, :], total, mask=inside)
    z = _read_states(entering, row, D, channel, N)
    slope = _zeros(N, ROWS, BLOCK)  # of z by the decay, what has entered the chunk held fast
    d_decay = _zeros(N, ROWS, BLOCK)
    d_gain = _zeros(N, ROWS, BLOCK)
    for first in range(0, length, UNROLL):
        tokens = ()
        gradients = ()
        banks = ()
        for u in tl.static_range(UNROLL):
            t = row * length + first + u
            tokens = tokens + (_read_tokens(h, t, T, D, channel),)
            gradients = gradients + (_read_tokens(d_y, t, T, D, channel),)
            banks = banks + (tl.load(bank + t, mask=t < T, other=0).to(tl.int32),)
        for u in tl.static_range(UNROLL):
            gradient = gradients[u].to(tl.float32)
            new_slope = ()
            for n in tl.static_range(N):
                spread = tl.broadcast_to(decays[n][None, :], gradient.shape)
                new_slope = new_slope + (tl.fma(slope[n], spread, z[n]),)
            slope = new_slope
            z = _step(z, decays, tokens[u].to(tl.float32), N)
            new_d_decay = ()
            new_d_gain = ()
            for n in tl.static_range(N):
                own = tl.where((banks[u] == n)[:, None], gradient, 0.0)
                new_d_decay = new_d_decay + (tl.fma(own, slope[n], d_decay[n]),)
                new_d_gain = new_d_gain + (tl.fma(own, z[n], d_gain[n]),)
            d_decay = new_d_decay
            d_gain = new_d_gain
    zeta = _read_states(arriving, row, D, channel, N)
    for n in tl.static_range(N):
        # Of later chunks: their gradient by the state that leaves this one.
        later = zeta[n] * decays[n][None, :] * slope[n]
        of_decay = tl.sum(d_decay[n] * gains[n][None, :] + later, 0)
        tl.store(partial + n * D + channel, of_decay, mask=channel < D)
        tl.store(partial + (N + n) * D + channel, tl.sum(d_gain[n], 0), mask=channel < D)


@triton.jit
def _sum_sequences_kernel(
    partial_B2ND,
    input_gain,
    output_gain,
    d_decay,
    d_input_gain,
    d_output_gain,
    B,
    N,
    D,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of one bank: sums over all sequences, always in the same order."""
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = tl.program_id(1)
    row = tl.arange(0, ROWS)
    of_decay = tl.zeros([ROWS, BLOCK], tl.float32)
    of_gain = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(0, B, ROWS):
        at = (tl.cast(first + row, tl.int64) * (2 * N) + n)[:, None] * D + channel[None, :]
        inside = (first + row < B)[:, None] & (channel < D)[None, :]
        of_decay += tl.load(partial_B2ND + at, mask=inside, other=0.0)
        of_gain += tl.load(partial_B2ND + at + N * D, mask=inside, other=0.0)
    at = n * D + channel
    there = channel < D
    b_gain = tl.load(input_gain + at, mask=there, other=0.0).to(tl.float32)
    c_gain = tl.load(output_gain + at, mask=there, other=0.0).to(tl.float32)
    gain = tl.sum(of_gain, 0)
    tl.store(d_decay + at, tl.sum(of_decay, 0), mask=there)
    tl.store(d_input_gain + at, gain * c_gain, mask=there)
    tl.store(d_output_gain + at, gain * b_gain, mask=there)


class _BankedDiagonalScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, h: Tensor, decay: Tensor, input_gain: Tensor, output_gain: Tensor, bank: Tensor
    ) -> Tensor:
        B, T, D = h.shape
        N = decay.shape[0]
        h, bank, decay, input_gain, output_gain = (
            x.contiguous() for x in (h, bank, decay, input_gain, output_gain)
        )
        tiling = _tiling(B, T, D)
        y = torch.empty_like(h)
        left = torch.empty(B, tiling.rows, N, D, dtype=torch.float32, device=h.device)
        entering = torch.empty_like(left)
        _forward_kernel[_grid(h, tiling)](
            h,
            decay,
            input_gain,
            output_gain,
            bank,
            y,
            left,
            entering,
            T,
            D,
            tiling.length,
            N,
            tiling.rows,
            tiling.unroll,
            tiling.block,
            num_warps=WARPS,
        )
        ctx.save_for_backward(h, decay, input_gain, output_gain, bank, entering)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        h, decay, input_gain, output_gain, bank, entering = ctx.saved_tensors
        B, T, D = h.shape
        N = decay.shape[0]
        tiling = _tiling(B, T, D)
        d_h = torch.empty_like(h)
        partial = torch.empty(B, 2, N, D, dtype=torch.float32, device=h.device)
        left, arriving = torch.empty_like(entering), torch.empty_like(entering)
        _backward_kernel[_grid(h, tiling)](
            grad.contiguous(),
            h,
            decay,
            input_gain,
            output_gain,
            bank,
            d_h,
            partial,
            left,
            entering,
            arriving,
            T,
            D,
            tiling.length,
            N,
            tiling.rows,
            tiling.unroll,
            tiling.block,
            num_warps=WARPS,
        )
        d_decay, d_input_gain, d_output_gain = (torch.empty_like(x) for x in (decay, input_gain, output_gain))
        _sum_sequences_kernel[(triton.cdiv(D, CHANNELS_PER_SUM), N)](
            partial,
            input_gain,
            output_gain,
            d_decay,
            d_input_gain,
            d_output_gain,
            B,
            N,
            D,
            SEQUENCES_PER_SUM,
            CHANNELS_PER_SUM,
            num_warps=4,
        )
        return d_h, d_decay, d_input_gain, d_output_gain, None


def _tiling(B: int, T: int, D: int) -> Tiling:
    rows, block = 32, 32
    if B * triton.cdiv(D, block) < MULTIPROCESSORS and T >= 1024:
        rows, block = 64, 16
    unroll = 8 if 8 * rows <= T else 4
    return Tiling(rows, block, unroll, triton.cdiv(triton.cdiv(T, rows), unroll) * unroll)


def _grid(h: Tensor, tiling: Tiling) -> tuple[int, int]:
    B, _, D = h.shape
    return triton.cdiv(D, tiling.block), B


def banked_diagonal_scan(
    h: Tensor, decay: Tensor, input_gain: Tensor, output_gain: Tensor, bank: Tensor
) -> Tensor:
    """Diagonal linear recurrence; see :func:`app.ops.banked_diagonal_scan.banked_diagonal_scan`."""
    if decay.shape[0] > MOST_BANKS:
        return vectorized.banked_diagonal_scan(h, decay, input_gain, output_gain, bank)
    y: Tensor = _BankedDiagonalScan.apply(h, decay, input_gain, output_gain, bank)
    return y
