"""The pathways of a Tilelli block.

A pathway's weights are stacked over its N banks on axis 0. Called with the bank of each token, a pathway
returns for each token the output of its own bank, as if that bank's weights had read the whole sequence.
Without banks named, every token uses the first. ``remember`` is what it needs of a sequence to go on token by token.

Shape suffixes: B batch, T sequence, D width, d head width, N banks, K taps, F hidden width.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from app.models.tilelli.recurrent import ConvState, FeedForwardState, ScanState, SparseState
from app.models.tilelli.weights import TernaryLinear, TilelliPart, WeightBank
from app.ops.banked_causal_conv import banked_causal_conv
from app.ops.banked_diagonal_scan import banked_diagonal_scan
from app.ops.banked_ffn import banked_ffn
from app.ops.banked_sparse_attention import banked_sparse_attention
from app.ops.precision import accumulation_dtype

__all__ = [
    "DiagonalSSM",
    "SparseCausalAttention",
    "TernaryCausalConv1d",
    "TernaryFFN",
    "TernaryLinear",
    "TilelliPart",
    "WeightBank",
]

INITIAL_DECAY_LOGIT = 1.5  # tanh(1.5) = 0.905: a memory of about ten tokens


class TernaryCausalConv1d(WeightBank):
    """Depthwise causal convolution over the sequence; the last tap is the current position, no bias.

    Args:
        d_model: channels.
        kernel_size: K; W ~ N(0, 1/K).
        n_banks: N.
        quantize: False uses W itself.
        per_row: a scale per channel, over its taps, in place of one per bank.
        lsq: learn the scale of each bank.

    Raises:
        ValueError: see :class:`~app.models.tilelli.weights.QuantisedWeight`.
    """

    def __init__(
        self,
        d_model: int,
        kernel_size: int,
        n_banks: int = 1,
        quantize: bool = True,
        per_row: bool = False,
        lsq: bool = False,
    ):
        super().__init__(n_banks, (d_model, kernel_size), 1 / kernel_size, quantize, per_row=per_row, lsq=lsq)

    def forward(self, h: Tensor, bank: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """``(B, T, D)`` and each token's bank ``(B, T)`` to ``(B, T, D)``."""
        return banked_causal_conv(h, self.effective_weight(), _bank_of(h, bank))

    def state_size(self, n_tokens: int) -> int:
        """Bytes of the last K inputs."""
        _, D, K = self.weight.shape
        return D * K * _accumulated_bytes(self.weight)

    def remember(self, h: Tensor) -> ConvState:
        """The last inputs of ``h`` ``(B, T, D)``."""
        return ConvState(self.effective_weight(), h)


class DiagonalSSM(TilelliPart):
    """Diagonal state space: ``s_t = a ⊙ s_{t−1} + b ⊙ h_t``, ``y_t = c ⊙ s_t``, ``a = tanh(decay_logit)``.

    Never quantised; the state is fp32 under autocast too.

    Args:
        d_model: channels.
        n_banks: N.
        init: ``original`` draws b and c from N(0, 1/D), so that the output starts about 2.35/D in scale and
            next to nothing of it is heard; ``unit`` draws them from N(0, 1).

    Raises:
        ValueError: another ``init``.
    """

    def __init__(self, d_model: int, n_banks: int = 1, init: Literal["original", "unit"] = "original"):
        super().__init__()
        if init not in ("original", "unit"):
            raise ValueError(f"init = {init}: must be one of original, unit")
        std = d_model**-0.5 if init == "original" else 1.0
        self.decay_logit = nn.Parameter(torch.full((n_banks, d_model), INITIAL_DECAY_LOGIT))
        self.input_gain = nn.Parameter(torch.randn(n_banks, d_model) * std)
        self.output_gain = nn.Parameter(torch.randn(n_banks, d_model) * std)

    def forward(self, h: Tensor, bank: Tensor | None = None) -> Tensor:
        """``(B, T, D)`` and each token's bank ``(B, T)`` to ``(B, T, D)``."""
        decay = torch.tanh(self.decay_logit)
        return banked_diagonal_scan(h, decay, self.input_gain, self.output_gain, _bank_of(h, bank))

    def state_size(self, n_tokens: int) -> int:
        """Bytes of a state for every bank."""
        return self.decay_logit.numel() * _accumulated_bytes(self.decay_logit)

    def remember(self, h: Tensor) -> ScanState:
        """The state of every bank after ``h`` ``(B, T, D)``."""
        return ScanState(torch.tanh(self.decay_logit), self.output_gain * self.input_gain, h)


class SparseCausalAttention(TilelliPart):
    """One attention head over each query's ``min(top_k, t+1)`` best positions ≤ t, without output projection.

    Its weights always have one scale per tensor and bank.

    Args:
        d_model: width of input and values.
        d_head: width of queries and keys.
        top_k: positions kept per query, at least 1.
        n_banks: N.
        quantize: False uses the weights themselves.

    Raises:
        ValueError: ``top_k`` below 1.
    """

    def __init__(
        self, d_model: int, d_head: int = 32, top_k: int = 8, n_banks: int = 1, quantize: bool = True
    ):
        super().__init__()
        if top_k < 1:
            raise ValueError(f"top_k = {top_k}: must be at least 1")
        self.top_k = top_k
        self.query = WeightBank(n_banks, (d_head, d_model), 1 / d_model, quantize)
        self.key = WeightBank(n_banks, (d_head, d_model), 1 / d_model, quantize)
        self.value = WeightBank(n_banks, (d_model, d_model), 1 / d_model, quantize)

    def forward(self, h: Tensor, bank: Tensor | None = None) -> Tensor:
        """``(B, T, D)`` and each token's bank ``(B, T)`` to ``(B, T, D)``."""
        return banked_sparse_attention(
            h, self.query(), self.key(), self.value(), _bank_of(h, bank), self.top_k
        )

    def state_size(self, n_tokens: int) -> int:
        """Bytes of every token's input, and of its keys by every bank."""
        N, d, D = self.key.weight.shape
        return n_tokens * (D + N * d) * self.key.weight.element_size()

    def remember(self, h: Tensor) -> SparseState:
        """``h`` ``(B, T, D)`` and its keys by every bank."""
        return SparseState(self.query(), self.key(), self.value(), self.top_k, h)


class TernaryFFN(TilelliPart):
    """Feed-forward network ``down(gelu(up(h)))`` with exact (erf) GELU.

    Args:
        d_model: width.
        expand: hidden width over ``d_model``.
        n_banks: N.
        quantize: False uses the weights themselves.
        per_row: a scale per output in place of one per bank.
        hadamard: quantise both weights in the Walsh–Hadamard basis of their inputs.
        lsq: learn the scale of each bank.

    Raises:
        ValueError: see :class:`~app.models.tilelli.weights.QuantisedWeight`.
    """

    def __init__(
        self,
        d_model: int,
        expand: int = 2,
        n_banks: int = 1,
        quantize: bool = True,
        per_row: bool = False,
        hadamard: bool = False,
        lsq: bool = False,
    ):
        super().__init__()
        width, form = expand * d_model, (quantize, per_row, hadamard, lsq)
        self.up = WeightBank(n_banks, (width, d_model), 1 / d_model, *form)
        self.down = WeightBank(n_banks, (d_model, width), 1 / width, *form)

    def forward(self, h: Tensor, bank: Tensor | None = None) -> Tensor:
        """``(B, T, D)`` and each token's bank ``(B, T)`` to ``(B, T, D)``."""
        return banked_ffn(h, self.up(), self.down(), _bank_of(h, bank))

    def state_size(self, n_tokens: int) -> int:
        """Nothing."""
        return 0

    def remember(self, h: Tensor) -> FeedForwardState:
        """Nothing of ``h``, but the weights."""
        return FeedForwardState(self.up(), self.down())


def _accumulated_bytes(x: Tensor) -> int:
    """Bytes of a number of a sum over time."""
    return accumulation_dtype(x).itemsize


def _bank_of(h: Tensor, bank: Tensor | None) -> Tensor:
    """Each token's bank ``(B, T)``; the first where none is named."""
    return h.new_zeros(h.shape[:2], dtype=torch.int64) if bank is None else bank
