"""Fast form of the banked diagonal state space: a chunked scan.

With ``z_t = a z_{t−1} + h_t`` the output is ``y_t = (c b) z_t``: one multiply-add a step for each bank, and
the gains are read once per token, at its own bank. Both get their gradients from that of their product.

Shape suffixes: L steps of a chunk, R chunks in parallel (B·C), N banks, D channels.
"""

from collections.abc import Iterator
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from app.ops.banks import BankSums
from app.ops.precision import accumulation_dtype

# Steps whose states are held at once: all banks of 32 steps of 32 windows of width 128 take 8 MiB at N = 4.
STEPS_PER_BLOCK = 32
# On the CPU one step over fewer numbers than this costs more for its call than for its arithmetic.
WORTHWHILE_STEP = 2**12


class _BankedDiagonalScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, decay: Tensor, gain: Tensor, bank: Tensor) -> Tensor:
        n_chunks = _n_chunks(h, decay)
        h_LRD, bank_LR = _to_chunks(h, n_chunks), _to_chunks(bank, n_chunks)
        n_steps, n_rows, _ = h_LRD.shape
        initial = h.new_zeros(n_rows, *decay.shape)
        if n_chunks > 1:
            last = initial
            for block in _blocks(n_steps):
                last = _states(h_LRD[block], decay, last)[-1]
            initial = _carry(last, decay**n_steps, n_chunks)
        y_LRD = torch.empty_like(h_LRD, memory_format=torch.contiguous_format)
        boundaries = []
        for block in _blocks(n_steps):
            boundaries.append(initial)
            z = _states(h_LRD[block], decay, initial)
            initial = z[-1].clone()  # not a view: it would keep the whole block alive
            chosen = z.flatten(0, 2).index_select(0, _rows(bank_LR[block], decay.shape[0]))
            chosen.mul_(gain.index_select(0, bank_LR[block].reshape(-1)))
            y_LRD[block] = chosen.view_as(y_LRD[block])
        ctx.save_for_backward(h, decay, gain, bank, *boundaries)
        return _from_chunks(y_LRD, h.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        h, decay, gain, bank, *boundaries = ctx.saved_tensors
        n_chunks = _n_chunks(h, decay)
        h_LRD, bank_LR, grad_LRD = (_to_chunks(x, n_chunks) for x in (h, bank, grad))
        n_steps, n_rows, _ = h_LRD.shape
        blocks = list(_blocks(n_steps))
        carried = h.new_zeros(n_rows, *decay.shape)
        if n_chunks > 1:
            first = carried
            for block in reversed(blocks):
                first = _state_gradients(grad_LRD[block], decay, gain, bank_LR[block], first)[0]
            carried = _carry(first, decay**n_steps, n_chunks, backwards=True)
        d_h = torch.empty_like(h_LRD, memory_format=torch.contiguous_format)
        d_decay, d_gain = torch.zeros_like(decay), torch.zeros_like(gain)
        for block, initial in zip(reversed(blocks), reversed(boundaries), strict=True):
            z = _states(h_LRD[block], decay, initial)
            g = _state_gradients(grad_LRD[block], decay, gain, bank_LR[block], carried)
            torch.sum(g, 2, out=d_h[block])
            carried = g[0].clone()
            d_decay += g[0].mul_(initial).sum(0)
            d_decay += g[1:].mul_(z[:-1]).sum((0, 1))
            chosen = z.flatten(0, 2).index_select(0, _rows(bank_LR[block], decay.shape[0]))
            chosen.mul_(grad_LRD[block].reshape(chosen.shape))
            BankSums(bank_LR[block].reshape(-1), decay.shape[0], gain.dtype).add_to(d_gain, chosen)
        return _from_chunks(d_h, h.shape), d_decay, d_gain, None


def _states(h_LRD: Tensor, decay_ND: Tensor, initial_RND: Tensor) -> Tensor:
    """States of all banks over one block of steps, ``(L, R, N, D)``."""
    z = initial_RND.new_empty(h_LRD.shape[0], *initial_RND.shape)
    last = initial_RND
    for h_R1D, state in zip(h_LRD.unsqueeze(2).unbind(), z.unbind(), strict=True):
        last = torch.addcmul(h_R1D, last, decay_ND, out=state)
    return z


def _state_gradients(
    grad_LRD: Tensor, decay_ND: Tensor, gain_ND: Tensor, bank_LR: Tensor, carried_RND: Tensor
) -> Tensor:
    """Gradient of the states of one block, ``(L, R, N, D)``, from that of the state after the block."""
    own_LRN = bank_LR.unsqueeze(-1) == torch.arange(gain_ND.shape[0], device=bank_LR.device)
    received = gain_ND.index_select(0, bank_LR.reshape(-1)).view_as(grad_LRD).mul_(grad_LRD)
    g = carried_RND.new_empty(grad_LRD.shape[0], *carried_RND.shape)
    torch.mul(own_LRN.unsqueeze(-1).to(g.dtype), received.unsqueeze(2), out=g)
    later = carried_RND
    for here in reversed(g.unbind()):
        later = here.addcmul_(later, decay_ND)
    return g


def _carry(ends_RND: Tensor, decay_ND: Tensor, n_chunks: int, backwards: bool = False) -> Tensor:
    """What enters each chunk from its neighbour, given what leaves every chunk that nothing enters."""
    ends = ends_RND.view(-1, n_chunks, *decay_ND.shape)
    entering = torch.zeros_like(ends)
    for chunk in range(1, n_chunks):
        here, before = (-1 - chunk, -chunk) if backwards else (chunk, chunk - 1)
        torch.addcmul(ends[:, before], entering[:, before], decay_ND, out=entering[:, here])
    return entering.view_as(ends_RND)


def _n_chunks(h: Tensor, decay: Tensor) -> int:
    """Chunks of a sequence that run side by side; they pay for states twice, so only if steps are cheap."""
    B, T, _ = h.shape
    if B == 0:
        return 1
    if h.device.type != "cpu":
        return isqrt(T)
    if B * decay.numel() >= WORTHWHILE_STEP:
        return 1
    return min(isqrt(T), 4 * WORTHWHILE_STEP // (B * decay.numel()))


def _to_chunks(x: Tensor, n_chunks: int) -> Tensor:
    """``(B, T, …)`` as ``(L, B·C, …)``, padded with zeros at the end of the sequence."""
    B, T = x.shape[:2]
    n_steps = -(-T // n_chunks)
    if n_chunks * n_steps != T:
        x = F.pad(x, (*(0, 0) * (x.dim() - 2), 0, n_chunks * n_steps - T))
    return x.reshape(B * n_chunks, n_steps, *x.shape[2:]).transpose(0, 1)


def _from_chunks(x_LRD: Tensor, shape: torch.Size) -> Tensor:
    B, T, D = shape
    n_chunks = x_LRD.shape[1] // B if B > 0 else 1  # written out: the shape of an empty batch leaves it open
    return x_LRD.transpose(0, 1).reshape(B, n_chunks * x_LRD.shape[0], D)[:, :T]


def _blocks(n_steps: int) -> Iterator[slice]:
    for start in range(0, n_steps, STEPS_PER_BLOCK):
        yield slice(start, min(n_steps, start + STEPS_PER_BLOCK))


def _rows(bank_LR: Tensor, n_banks: int) -> Tensor:
    """Where each token's own bank lies in ``(L·R·N, D)``."""
    bank = bank_LR.reshape(-1)
    return torch.arange(0, bank.shape[0] * n_banks, n_banks, device=bank.device).add_(bank)


def banked_diagonal_scan(
    h: Tensor, decay: Tensor, input_gain: Tensor, output_gain: Tensor, bank: Tensor
) -> Tensor:
    """Diagonal linear recurrence of every bank over the whole sequence, read at each token's own bank.

    ``s_t = a ⊙ s_{t−1} + b ⊙ h_t`` from s = 0, ``y_t = c ⊙ s_t``. The state is fp32 at least, under autocast
    too.

    Args:
        h: ``(B, T, D)``.
        decay: a, ``(N, D)``, in (−1, 1).
        input_gain: b, ``(N, D)``.
        output_gain: c, ``(N, D)``.
        bank: ``(B, T)`` int64 in [0, N).

    Returns:
        ``(B, T, D)`` in the dtype of ``h``.
    """
    dtype = accumulation_dtype(h)
    with torch.autocast(h.device.type, enabled=False):
        gain = output_gain.to(dtype) * input_gain.to(dtype)
        return _BankedDiagonalScan.apply(h.to(dtype), decay.to(dtype), gain, bank).to(h.dtype)
