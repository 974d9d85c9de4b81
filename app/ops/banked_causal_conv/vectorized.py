"""Fast form of the banked causal convolution: the tap vector is chosen per token.

Shape suffixes: B batch, T sequence, D channels, N banks, K taps, R tokens of a tile.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from app.ops.banks import BankSums
from app.ops.precision import accumulation_dtype

# Elements of one tile: output, input and chosen taps (3 × 2 MiB in fp32) then stay in a processor's cache
# while the taps are accumulated. Smaller tiles pay more for calls than they save.
TILE_ELEMENTS = 2**19


class _BankedCausalConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bank: Tensor) -> Tensor:
        taps_KND = weight.permute(2, 0, 1).contiguous()
        kernel_size = taps_KND.shape[0]
        padded = F.pad(h, (0, 0, kernel_size - 1, 0))
        ctx.save_for_backward(padded, taps_KND, bank)
        tiles = list(_tiles(h))
        y = torch.zeros_like(h, memory_format=torch.contiguous_format)
        for b, t in tiles:
            choose = _TapChooser(taps_KND, bank[b, t])
            *before, last = (padded[b, t.start + j : t.stop + j] for j in range(kernel_size))
            for j, earlier in enumerate(before):
                y[b, t].addcmul_(choose(j), earlier)
            if len(tiles) == 1:
                # Not in place: torch.compile loses the gradient of what a function returns that it has written to.
                return torch.addcmul(y, choose(kernel_size - 1), last)
            y[b, t].addcmul_(choose(kernel_size - 1), last)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        padded, taps_KND, bank = ctx.saved_tensors
        kernel_size, n_banks, n_channels = taps_KND.shape
        d_padded = torch.zeros_like(padded)
        d_taps = torch.zeros_like(taps_KND)
        for b, t in _tiles(grad):
            choose = _TapChooser(taps_KND, bank[b, t])
            by_bank = BankSums(bank[b, t].reshape(-1), n_banks, grad.dtype)
            grad_tile = grad[b, t]
            product = torch.empty(grad_tile.shape, dtype=grad.dtype, device=grad.device)
            for j in range(kernel_size):
                reach = slice(t.start + j, t.stop + j)
                d_padded[b, reach].addcmul_(choose(j), grad_tile)
                torch.mul(padded[b, reach], grad_tile, out=product)
                by_bank.add_to(d_taps[j], product.view(-1, n_channels))
        return d_padded[:, kernel_size - 1 :], d_taps.permute(1, 2, 0), None


class _TapChooser:
    """Tap j of the bank of each token of a tile, ``(b, t, D)``, written into one buffer again and again."""

    def __init__(self, taps_KND: Tensor, bank: Tensor):
        self.taps_KND = taps_KND
        self.shape = (*bank.shape, taps_KND.shape[-1])
        self.bank_R = bank.reshape(-1)
        self.buffer = taps_KND.new_empty(self.bank_R.shape[0], taps_KND.shape[-1])

    def __call__(self, j: int) -> Tensor:
        if self.taps_KND.shape[1] == 1:
            return self.taps_KND[j, 0]
        torch.index_select(self.taps_KND[j], 0, self.bank_R, out=self.buffer)
        return self.buffer.view(self.shape)


def _tiles(h: Tensor) -> Iterator[tuple[slice, slice]]:
    """Windows and times of each tile; one tile where there is no cache to fit, or a compiler to do that."""
    B, T, D = h.shape
    is_tiled = h.device.type == "cpu" and not torch.compiler.is_compiling()
    n_tokens = TILE_ELEMENTS // D if is_tiled else B * T
    # An empty batch has no tiles, for which these steps need not be 0.
    n_windows = max(1, min(B, n_tokens // max(1, T)))
    n_times = max(1, min(T, n_tokens))
    for b in range(0, B, n_windows):
        for t in range(0, T, n_times):
            yield slice(b, min(B, b + n_windows)), slice(t, min(T, t + n_times))


def banked_causal_conv(h: Tensor, weight: Tensor, bank: Tensor) -> Tensor:
    """Depthwise causal convolution whose taps are those of each token's bank.

    ``y[t, c] = Σ_j W[n(t), c, K−1−j] · h[t−j, c]``, with h = 0 before the sequence: the last tap is the
    current position. Computed in fp32 at least.

    Args:
        h: ``(B, T, D)``.
        weight: ``(N, D, K)``, one set of taps per bank.
        bank: ``(B, T)`` int64 in [0, N).

    Returns:
        ``(B, T, D)`` in the dtype of ``h``.
    """
    dtype = accumulation_dtype(h)
    with torch.autocast(h.device.type, enabled=False):
        return _BankedCausalConv.apply(h.to(dtype), weight.to(dtype), bank).to(h.dtype)
