"""Tilelli one token at a time: what each part remembers of the tokens before, and the step that reads it.

A convolution remembers its last K − 1 inputs and a state space one state per bank, whatever the length of the
text. The sparse pathway remembers the keys of all banks and its input rows: a later token may read any of them
through any bank. Effective weights are formed once, when a cache is made.

Shape suffixes: B rows, D width, d head width, N banks, K taps, S positions read so far, P pathways, O and I
output and input features.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.models.tilelli.block import TilelliBlock
from app.models.tilelli.parts import (
    DiagonalSSM,
    SparseCausalAttention,
    TernaryCausalConv1d,
    TernaryFFN,
)
from app.models.tilelli.routing import best_bank, gate, keep_largest
from app.ops.banked_sparse_attention.selection import largest_first
from app.ops.precision import accumulation_dtype

if TYPE_CHECKING:
    from app.models.tilelli.network import TilelliLM

FIRST_CAPACITY = 64  # positions that the sparse pathway makes room for at first; doubled when they are full

#: the bank that every row uses, where that is known without asking the device; otherwise one for each, ``(B,)``
Bank = int | Tensor


class ConvState:
    """The last K inputs of a causal convolution.

    Args:
        conv: the pathway.
        h: ``(B, T, D)``, what it has read so far.
    """

    def __init__(self, conv: TernaryCausalConv1d, h: Tensor):
        self.taps_NKD = conv.effective_weight().transpose(1, 2).to(accumulation_dtype(h)).contiguous()
        K = self.taps_NKD.shape[1]
        self.window_BKD = F.pad(h, (0, 0, K, 0))[:, -K:].to(self.taps_NKD.dtype)

    def step(self, h: Tensor, bank: Bank) -> Tensor:
        """``(B, D) → (B, D)``, each row by its own bank."""
        self.window_BKD = torch.cat([self.window_BKD[:, 1:], h.unsqueeze(1)], 1)
        return (self.window_BKD * _own(self.taps_NKD, bank)).sum(1).to(h.dtype)


class ScanState:
    """The state ``z_t = a z_{t−1} + h_t`` of every bank of a diagonal state space; its output is ``c b z``.

    Args:
        scan: the pathway.
        h: ``(B, T, D)``, what it has read so far.
    """

    def __init__(self, scan: DiagonalSSM, h: Tensor):
        dtype = accumulation_dtype(h)
        self.decay_ND = torch.tanh(scan.decay_logit).to(dtype)
        self.gain_ND = (scan.output_gain * scan.input_gain).to(dtype)
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
        attention: the pathway.
        h: ``(B, T, D)``, what it has read so far.
    """

    def __init__(self, attention: SparseCausalAttention, h: Tensor):
        self.top_k = attention.top_k
        query_NdD = attention.query()
        self.n_banks, self.d_head, _ = query_NdD.shape
        # Keys are needed of every bank, and the few queries beside them cost less than a product of their own.
        self.projections_OD = torch.cat([attention.key(), query_NdD]).flatten(0, 1)
        self.value_NDD = attention.value()
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
        scores = (keys_BSd @ query).squeeze(-1).to(h.dtype) * self.d_head**-0.5  # (B, S)
        position = largest_first(scores, min(self.top_k, self.length))
        weight = scores.gather(-1, position).softmax(-1)
        mixed = F.embedding_bag(
            position + self._offset,
            self._rows_BSD.flatten(0, 1),
            mode="sum",
            per_sample_weights=weight,
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
        feed_forward: the pathway.
        h: ``(B, T, D)``, what it has read so far; not needed.
    """

    def __init__(self, feed_forward: TernaryFFN, h: Tensor):
        self.up, self.down = feed_forward.up(), feed_forward.down()

    def step(self, h: Tensor, bank: Bank) -> Tensor:
        """``(B, D) → (B, D)``, each row by its own bank."""
        return _own_linear(F.gelu(_own_linear(h, self.up, bank)), self.down, bank)


PathwayState = ConvState | ScanState | SparseState | FeedForwardState
STATES: dict[type[nn.Module], Callable[[Any, Tensor], PathwayState]] = {
    TernaryCausalConv1d: ConvState,
    DiagonalSSM: ScanState,
    SparseCausalAttention: SparseState,
    TernaryFFN: FeedForwardState,
}


class BlockState:
    """What one block remembers.

    Args:
        block: the block.
        x: ``(B, T, D)``, what it has read so far.
    """

    def __init__(self, block: TilelliBlock, x: Tensor):
        h = block.norm(x)
        self.block = block
        self.router_weight = block.router.effective_weight()
        pathways = [getattr(block, name) for name in block.pathway_names]
        self.pathways = [STATES[type(pathway)](pathway, h) for pathway in pathways]

    def step(self, x: Tensor) -> Tensor:
        """``(B, D) → (B, D)``, the block's output for the next token of each row."""
        h = self.block.norm(x)
        weights_BP, banks = self._route(h)
        y = x
        for pathway, weight, bank in zip(self.pathways, weights_BP.split(1, -1), banks, strict=True):
            y = torch.addcmul(y, weight, self.block.scaled(pathway.step(h, bank)))
        return y.to(x.dtype)

    def _route(self, h: Tensor) -> tuple[Tensor, list[Bank]]:
        """Weight ``(B, P)`` and bank of each pathway."""
        logits = F.linear(h, self.router_weight)
        r_BPN = (
            logits.to(accumulation_dtype(logits)).softmax(-1).view(-1, len(self.pathways), self.block.n_banks)
        )
        r_BPN, kept_BPN = keep_largest(r_BPN, self.block.top_k_routing)
        if self.block.n_banks == 1:
            return r_BPN.squeeze(-1), [0] * len(self.pathways)
        bank_BP = best_bank(r_BPN, kept_BPN, self.block.router_bias)
        weights_BP = gate(r_BPN, bank_BP, self.block.bank_gate)
        if bank_BP.shape[0] == 1 and bank_BP.device.type == "cpu":  # reading a number waits for nothing there
            return weights_BP, bank_BP[0].tolist()
        return weights_BP, list(bank_BP.unbind(1))


class TilelliCache:
    """What a Tilelli network remembers of the tokens that it has read.

    Args:
        network: in evaluation mode.
        idx: ``(B, T)`` int64.

    Attributes:
        length: tokens read so far.
        logits: ``(B, V)``, of the token after ``idx``.
    """

    def __init__(self, network: "TilelliLM", idx: Tensor):
        self.network = network
        self.head_weight = network.head.effective_weight()
        self.length = idx.shape[1]
        self.blocks = []
        x = network.embed(idx)
        for block in network.tilelli_blocks:
            self.blocks.append(BlockState(block, x))
            x, _ = block(x)
        self.logits = self._logits(x[:, -1])

    def step(self, token: Tensor) -> Tensor:
        """Logits ``(B, V)`` after one more token ``(B,)`` of each row."""
        x = self.network.embed(token.unsqueeze(1), self.length).squeeze(1)
        self.length += 1
        for block in self.blocks:
            x = block.step(x)
        return self._logits(x)

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(self.network.norm_f(x), self.head_weight)


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
