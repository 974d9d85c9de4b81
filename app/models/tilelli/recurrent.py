"""What the pathways of Tilelli remember of the tokens before, and how each reads one more.

A convolution remembers its last K − 1 inputs and a state space one state per bank, whatever the length of the
text. The sparse pathway remembers the keys of all banks and its input rows: a later token may read any of them
through any bank. Weights arrive as they are to be used, and are formed once for a whole text.

Shape suffixes: B rows, D width, d head width, N banks, K taps, F hidden width, S positions read so far, O and I output
and input features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from app.ops.banked_sparse_attention.selection import largest_first
from app.ops.precision import accumulation_dtype

FIRST_CAPACITY = 64  # positions that the sparse pathway makes room for at first; doubled when they are full
SUM = 0  # how `torch.embedding_bag` counts its modes

#: the bank that every row uses, where that is known without asking the device; otherwise one for each, ``(B,)``
Bank = int | Tensor


class PathwayState(Protocol):
    """What one pathway remembers."""

    def step(self, h: Tensor, bank: Bank) -> Tensor:
        """``(B, D) → (B, D)``, each row by its own bank."""
        ...


class BlockState:
    """What one block remembers; nothing until the block has read a prompt with it.

    Attributes:
        pathways: one for each pathway of the block.
        router_weight: ``(P·N, D)``, the effective one.
        bank_index: ``(B, 1, P)`` int64, of the last token of the prompt: with one bank, of every later token too.
    """

    pathways: Sequence[PathwayState] = ()
    router_weight: Tensor
    bank_index: Tensor


@dataclass
class TilelliCache:
    """What a network remembers.

    Attributes:
        head_weight: ``(V, D)``, the effective one.
        blocks: one for each block.
        length: tokens read so far.
    """

    head_weight: Tensor
    blocks: Sequence[BlockState]
    length: int = 0


class ConvState:
    """The last K inputs of a causal convolution.

    Args:
        weight_NDK: taps, the last of them for the current position.
        h: ``(B, T, D)``, what it has read so far.
    """

    def __init__(self, weight_NDK: Tensor, h: Tensor):
        self.taps_NKD = weight_NDK.transpose(1, 2).to(accumulation_dtype(h)).contiguous()
        K = self.taps_NKD.shape[1]
        self.window_BKD = F.pad(h, (0, 0, K, 0))[:, -K:].to(self.taps_NKD.dtype)

    def step(self, h: Tensor, bank: Bank) -> Tensor:
        """``(B, D) → (B, D)``, each row by its own bank."""
        self.window_BKD = torch.cat([self.window_BKD[:, 1:], h.unsqueeze(1)], 1)
        return (self.window_BKD * _own(self.taps_NKD, bank)).sum(1).to(h.dtype)


class ScanState:
    """The state ``z_t = a z_{t−1} + h_t`` of every bank of a diagonal state space; its output is ``c b z``.

    Args:
        decay_ND: a.
        gain_ND: c b.
        h: ``(B, T, D)``, what it has read so far.
    """

    def __init__(self, decay_ND: Tensor, gain_ND: Tensor, h: Tensor):
        dtype = accumulation_dtype(h)
        self.decay_ND = decay_ND.to(dtype)
        self.gain_ND = gain_ND.to(dtype)
        age = torch.arange(h.shape[1] - 1, -1, -1, device=h.device)
        powers_NTD = self.decay_ND.unsqueeze(1) ** age.unsqueeze(-1)
        with torch.autocast(h.device.type, enabled=False):
            self.state_BND = torch.einsum("btd,ntd->bnd", h.to(dtype), powers_NTD)

    def step(self, h: Tensor, bank: Bank) -> Tensor:
        """``(B, D) → (B, D)``, each row by its own bank."""
        self.state_BND = torch.addcmul(h.unsqueeze(1), self.decay_ND, self.state_BND)
        return (_own_column(self.state_BND, bank) * _own(self.gain_ND, bank)).to(h.dtype)


class SparseState:
    """Keys of all banks and inputs of every position that a sparse attention has read.

    Args:
        query_NdD: weight of the queries.
        key_NdD: weight of the keys.
        value_NDD: weight of the values.
        top_k: positions that a query keeps.
        h: ``(B, T, D)``, what it has read so far.
    """

    def __init__(self, query_NdD: Tensor, key_NdD: Tensor, value_NDD: Tensor, top_k: int, h: Tensor):
        self.top_k = top_k
        self.n_banks, self.d_head, _ = query_NdD.shape
        # Keys are needed of every bank, and the few queries beside them cost less than a product of their own.
        self.projections_OD = torch.cat([key_NdD, query_NdD]).flatten(0, 1)
        self.value_NDD = value_NDD
        B, T, D = h.shape
        self.length = T
        self._row = torch.arange(B, device=h.device)
        keys = self._projected(h)[:, :, : self.n_banks].permute(2, 0, 1, 3)
        self._keys_NBSd = keys.new_empty(self.n_banks, B, 0, self.d_head)
        self._rows_BSD = h.new_empty(B, 0, D)
        self._make_room(max(FIRST_CAPACITY, 2 * T))
        self._keys_NBSd[:, :, :T] = keys
        self._rows_BSD[:, :T] = h

    def _projected(self, h: Tensor) -> Tensor:
        """``(..., D) → (..., 2N, d)``: the keys of all banks, then their queries."""
        return F.linear(h, self.projections_OD).unflatten(-1, (-1, self.d_head))

    def _make_room(self, capacity: int) -> None:
        missing = capacity - self._rows_BSD.shape[1]
        self._keys_NBSd = F.pad(self._keys_NBSd, (0, 0, 0, missing))
        self._rows_BSD = F.pad(self._rows_BSD, (0, 0, 0, missing))
        self._offset = capacity * self._row.unsqueeze(1)

    def step(self, h: Tensor, bank: Bank) -> Tensor:
        """``(B, D) → (B, D)``, each row by its own bank."""
        if self.length == self._rows_BSD.shape[1]:
            self._make_room(2 * self.length)
        keys_BNd, queries_BNd = self._projected(h).split(self.n_banks, 1)
        self._keys_NBSd[:, :, self.length] = keys_BNd.transpose(0, 1)
        self._rows_BSD[:, self.length] = h
        self.length += 1
        query = _own_column(queries_BNd, bank).unsqueeze(-1)  # (B, d, 1)
        keys_BSd = self._own_keys(bank)
        scores = (keys_BSd @ query).squeeze(-1).to(accumulation_dtype(h)) * self.d_head**-0.5  # (B, S)
        position = largest_first(scores, min(self.top_k, self.length))
        # Autocast has a softmax in fp32, and a weighted sum in the format of its rows.
        weight = scores.gather(-1, position).softmax(-1).to(h.dtype)
        # The function itself: `F.embedding_bag` takes twice the time for a few rows, most of it for checks.
        mixed, *_ = torch.embedding_bag(
            self._rows_BSD.flatten(0, 1),
            (position + self._offset).flatten(),
            self._row * position.shape[1],
            mode=SUM,
            per_sample_weights=weight.flatten(),
        )
        return _own_linear(mixed, self.value_NDD, bank)

    def _own_keys(self, bank: Bank) -> Tensor:
        """The keys that each row's bank made of the positions so far, ``(B, S, d)``."""
        if isinstance(bank, int):
            return self._keys_NBSd[bank, :, : self.length]
        return self._keys_NBSd[bank, self._row, : self.length]


class FeedForwardState:
    """The weights of a feed-forward network; it remembers no token.

    Args:
        up_NFD: weight onto the hidden features.
        down_NDF: weight back.
    """

    def __init__(self, up_NFD: Tensor, down_NDF: Tensor):
        self.up_NFD, self.down_NDF = up_NFD, down_NDF

    def step(self, h: Tensor, bank: Bank) -> Tensor:
        """``(B, D) → (B, D)``, each row by its own bank."""
        return _own_linear(F.gelu(_own_linear(h, self.up_NFD, bank)), self.down_NDF, bank)


def _own(per_bank: Tensor, bank: Bank) -> Tensor:
    """Each row's entry of ``(N, ...)``: ``(B, ...)``, or one for all rows."""
    return per_bank[bank] if isinstance(bank, int) else per_bank.index_select(0, bank)


def _own_column(per_bank_BND: Tensor, bank: Bank) -> Tensor:
    """Each row's entry of ``(B, N, D)``: ``(B, D)``."""
    if isinstance(bank, int):
        return per_bank_BND[:, bank]
    index = bank.view(-1, 1, 1).expand(-1, 1, per_bank_BND.shape[-1])
    return per_bank_BND.gather(1, index).squeeze(1)


def _own_linear(x: Tensor, weight_NOI: Tensor, bank: Bank) -> Tensor:
    """``(B, I) → (B, O)`` by the weight of each row's bank.

    Rows of several banks are multiplied by all of them: a few weights each for one product cost less than
    copying a weight for every row.
    """
    if isinstance(bank, int):
        return F.linear(x, weight_NOI[bank])
    N, n_outputs, _ = weight_NOI.shape
    return _own_column(F.linear(x, weight_NOI.flatten(0, 1)).view(-1, N, n_outputs), bank)
