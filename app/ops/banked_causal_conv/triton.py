"""Form of the banked causal convolution for GPUs: a warp walks along the tokens of a few channels.

It keeps the last K tokens and the taps of the current bank in registers. All of its lanes are at the same token, so the
choice of a bank is a branch, and costs nothing where a token's bank is that of the token before.

Shape suffixes: B batch, T sequence, D channels, N banks, K taps, S slices (of all sequences).
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from app.ops.banked_causal_conv import vectorized

# Lanes of a warp, the channels that a program takes at least.
LANES = 32
# Tokens whose loads are in flight at once.
UNROLL = tl.constexpr(8)
# Programs that fill a card of 132 multiprocessors: 16 of one warp on each, 12 with many accumulators.
WALKING_PROGRAMS, SUMMING_PROGRAMS = 2048, 1536
# Numbers of one lane that are kept in registers, of 255.
REGISTERS = 128
# Taps beyond which they do not fit there.
LARGEST_KERNEL = REGISTERS // 2
# Registers of a lane where sums are kept: 12 warps then share a multiprocessor.
MOST_REGISTERS = 168
SHORTEST_SLICE = 16
# Rows of partial sums, and their channels, that a program of the last pass takes at a time.
ROWS_PER_SUM, CHANNELS_PER_SUM = 32, 128


@triton.jit
def _load_token(x, t, T, D, channel):
    """Token t of one sequence, ``(BLOCK,)`` fp32; zeros outside of the sequence."""
    n_channels = tl.where((t >= 0) & (t < T), D, 0)
    return tl.load(x + tl.cast(t, tl.int64) * D + channel, mask=channel < n_channels, other=0.0)


@triton.jit
def _slice(T, slices_per_sequence, length):
    """Sequence and first token of this program's slice, int64 and int32."""
    s = tl.program_id(1)
    return tl.cast(s // slices_per_sequence, tl.int64), (s % slices_per_sequence) * length


@triton.jit
def _load_taps(table, n, K: tl.constexpr, BLOCK: tl.constexpr):
    """The K taps of bank n for the channels of this program, a tuple of ``(BLOCK,)``."""
    # One address; the taps beside it lie at distances that the compiler knows.
    first = table + (n * tl.num_programs(0) + tl.program_id(0)) * (K * BLOCK) + tl.arange(0, BLOCK)
    taps = ()
    for o in tl.static_range(K):
        taps = taps + (tl.load(first + o * BLOCK),)
    return taps


@triton.jit
def _forward_kernel(
    h, table, bank, y, T, D, slices_per_sequence, length, K: tl.constexpr, BLOCK: tl.constexpr
):
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b, start = _slice(T, slices_per_sequence, length)
    h += b * T * D
    y += b * T * D
    bank += b * T
    window = ()
    for o in tl.static_range(K - 1):
        window = window + (_load_token(h, start - (K - 1) + o, T, D, channel).to(tl.float32),)
    taps = ()
    for _ in tl.static_range(K):
        taps = taps + (tl.zeros([BLOCK], tl.float32),)
    current = tl.full([], -1, tl.int32)
    for first in range(start, tl.minimum(start + length, T), UNROLL):
        tokens = ()
        banks = ()
        for u in tl.static_range(UNROLL):
            tokens = tokens + (_load_token(h, first + u, T, D, channel),)
            banks = banks + (tl.load(bank + first + u, mask=first + u < T, other=0).to(tl.int32),)
        for u in tl.static_range(UNROLL):
            if banks[u] != current:
                current = banks[u]
                taps = _load_taps(table, current, K, BLOCK)
            window = window + (tokens[u].to(tl.float32),)
            total = taps[0] * window[0]
            for o in tl.static_range(1, K):
                total = tl.fma(taps[o], window[o], total)
            n_channels = tl.where(first + u < T, D, 0)
            tl.store(y + tl.cast(first + u, tl.int64) * D + channel, total, mask=channel < n_channels)
            window = window[1:]


@triton.jit
def _input_gradient_kernel(
    d_y, table, bank, d_h, T, D, slices_per_sequence, length, K: tl.constexpr, BLOCK: tl.constexpr
):
    """Each token adds to the K tokens that it has read; the earliest of these is then complete."""
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b, start = _slice(T, slices_per_sequence, length)
    d_y += b * T * D
    d_h += b * T * D
    bank += b * T
    pending = ()
    taps = ()
    for _ in tl.static_range(K - 1):
        pending = pending + (tl.zeros([BLOCK], tl.float32),)
    for _ in tl.static_range(K):
        taps = taps + (tl.zeros([BLOCK], tl.float32),)
    current = tl.full([], -1, tl.int32)
    end = tl.minimum(start + length, T)
    for first in range(start, end + K - 1, UNROLL):
        tokens = ()
        banks = ()
        for u in tl.static_range(UNROLL):
            tokens = tokens + (_load_token(d_y, first + u, T, D, channel),)
            banks = banks + (tl.load(bank + first + u, mask=first + u < T, other=0).to(tl.int32),)
        for u in tl.static_range(UNROLL):
            if banks[u] != current:
                current = banks[u]
                taps = _load_taps(table, current, K, BLOCK)
            gradient = tokens[u].to(tl.float32)
            received = ()
            for o in tl.static_range(K - 1):
                received = received + (tl.fma(taps[o], gradient, pending[o]),)
            received = received + (taps[K - 1] * gradient,)
            done = first + u - (K - 1)
            n_channels = tl.where((done >= start) & (done < end), D, 0)
            tl.store(d_h + tl.cast(done, tl.int64) * D + channel, received[0], mask=channel < n_channels)
            pending = received[1:]


@triton.jit
def _weight_gradient_kernel(
    d_y,
    h,
    bank,
    partial_SNKD,
    T,
    D,
    N,
    slices_per_sequence,
    length,
    K: tl.constexpr,
    BANKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums of one slice, for the ``BANKS`` banks of this program."""
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b, start = _slice(T, slices_per_sequence, length)
    first_bank = tl.program_id(2) * BANKS
    d_y += b * T * D
    h += b * T * D
    bank += b * T
    window = ()
    sums = ()
    for o in tl.static_range(K - 1):
        window = window + (_load_token(h, start - (K - 1) + o, T, D, channel).to(tl.float32),)
    for _ in tl.static_range(BANKS * K):
        sums = sums + (tl.zeros([BLOCK], tl.float32),)
    for first in range(start, tl.minimum(start + length, T), UNROLL):
        tokens = ()
        gradients = ()
        banks = ()
        for u in tl.static_range(UNROLL):
            tokens = tokens + (_load_token(h, first + u, T, D, channel),)
            gradients = gradients + (_load_token(d_y, first + u, T, D, channel),)
            n = tl.load(bank + first + u, mask=first + u < T, other=0).to(tl.int32)
            banks = banks + (n - first_bank,)
        for u in tl.static_range(UNROLL):
            window = window + (tokens[u].to(tl.float32),)
            gradient = gradients[u].to(tl.float32)
            for n in tl.static_range(BANKS):
                if banks[u] == n:
                    own = ()
                    for o in tl.static_range(K):
                        own = own + (tl.fma(gradient, window[o], sums[n * K + o]),)
                    sums = sums[: n * K] + own + sums[(n + 1) * K :]
            window = window[1:]
    partial_SNKD += (tl.cast(tl.program_id(1), tl.int64) * N + first_bank) * K * D
    for n in tl.static_range(BANKS):
        for o in tl.static_range(K):
            n_channels = tl.where(first_bank + n < N, D, 0)
            tl.store(partial_SNKD + (n * K + o) * D + channel, sums[n * K + o], mask=channel < n_channels)


@triton.jit
def _sum_slices_kernel(
    partial_SNKD, d_weight_NDK, S, N, D, K: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """One tap of one bank: the sum over all slices, always in the same order."""
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n, o = tl.program_id(1) // K, tl.program_id(1) % K
    row = tl.arange(0, ROWS)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(0, S, ROWS):
        at = (tl.cast(first + row, tl.int64) * N + n) * K + o
        inside = (first + row < S)[:, None] & (channel < D)[None, :]
        total += tl.load(partial_SNKD + at[:, None] * D + channel[None, :], mask=inside, other=0.0)
    at = (n * D + channel) * K + o
    tl.store(d_weight_NDK + at, tl.sum(total, 0), mask=channel < D)


class _BankedCausalConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bank: Tensor) -> Tensor:
        B, T, D = h.shape
        K = weight.shape[2]
        h, bank = h.contiguous(), bank.contiguous()
        block = _channels(2 * K)
        table = _tap_table(weight.detach(), block)
        ctx.save_for_backward(h, weight, table, bank)
        y = torch.empty_like(h)
        n_slices, length = _slices(B, T, triton.cdiv(D, block), WALKING_PROGRAMS)
        grid = (triton.cdiv(D, block), B * n_slices)
        _forward_kernel[grid](h, table, bank, y, T, D, n_slices, length, K, block, num_warps=1)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        h, weight, table, bank = ctx.saved_tensors
        grad = grad.contiguous()
        d_h = _input_gradient(grad, table, bank) if ctx.needs_input_grad[0] else None
        d_weight = _weight_gradient(grad, h, weight, bank) if ctx.needs_input_grad[1] else None
        return d_h, d_weight, None


def _input_gradient(grad: Tensor, table: Tensor, bank: Tensor) -> Tensor:
    B, T, D = grad.shape
    _, n_blocks, K, block = table.shape
    d_h = torch.empty_like(grad)
    n_slices, length = _slices(B, T, n_blocks, WALKING_PROGRAMS)
    _input_gradient_kernel[(n_blocks, B * n_slices)](
        grad, table, bank, d_h, T, D, n_slices, length, K, block, num_warps=1
    )
    return d_h


def _weight_gradient(grad: Tensor, h: Tensor, weight: Tensor, bank: Tensor) -> Tensor:
    B, T, D = h.shape
    N, _, K = weight.shape
    n_banks = min(N, max(1, REGISTERS // K - 1))
    block = _channels((n_banks + 1) * K)
    n_blocks, n_groups = triton.cdiv(D, block), triton.cdiv(N, n_banks)
    n_slices, length = _slices(B, T, n_blocks * n_groups, SUMMING_PROGRAMS)
    partial = torch.empty(B * n_slices, N, K, D, dtype=torch.float32, device=h.device)
    _weight_gradient_kernel[(n_blocks, B * n_slices, n_groups)](
        grad,
        h,
        bank,
        partial,
        T,
        D,
        N,
        n_slices,
        length,
        K,
        n_banks,
        block,
        num_warps=1,
        maxnreg=MOST_REGISTERS,
    )
    d_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    _sum_slices_kernel[(triton.cdiv(D, CHANNELS_PER_SUM), N * K)](
        partial, d_weight, B * n_slices, N, D, K, ROWS_PER_SUM, CHANNELS_PER_SUM, num_warps=4
    )
    return d_weight


def _tap_table(weight_NDK: Tensor, block: int) -> Tensor:
    """``(N, blocks, K, block)`` fp32: what one program reads lies together; zeros beyond the last channel."""
    N, D, K = weight_NDK.shape
    taps = weight_NDK.float()
    if D % block:
        taps = F.pad(taps, (0, 0, 0, -D % block))
    return taps.reshape(N, -1, block, K).transpose(2, 3).contiguous()


def _channels(numbers: int) -> int:
    """Channels of a program that keeps so many numbers for each: as many as its lanes have registers for."""
    for per_lane in (4, 2):
        if numbers * per_lane <= REGISTERS:
            return per_lane * LANES
    return LANES


def _slices(B: int, T: int, n_programs: int, wanted: int) -> tuple[int, int]:
    """Slices of each sequence, and their length, that make about as many programs as wanted."""
    n_slices = max(1, min(wanted // (B * n_programs), triton.cdiv(T, SHORTEST_SLICE)))
    length = triton.cdiv(triton.cdiv(T, n_slices), UNROLL.value) * UNROLL.value
    return triton.cdiv(T, length), length


def banked_causal_conv(h: Tensor, weight: Tensor, bank: Tensor) -> Tensor:
    """Depthwise causal convolution; see :func:`app.ops.banked_causal_conv.banked_causal_conv`."""
    if weight.shape[2] > LARGEST_KERNEL:
        return vectorized.banked_causal_conv(h, weight, bank)
    y: Tensor = _BankedCausalConv.apply(h, weight, bank)
    return y
