"""The parts of a Tilelli block: ternary weights, and the pathways that use them.

A pathway's weights are stacked over its N banks on axis 0. Called with the bank of each token, a pathway
returns for each token the output of its own bank, as if that bank's weights had read the whole sequence.

Shape suffixes: B batch, T sequence, D width, d head width, N banks, K taps, F hidden width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.ops import FAST, Operations

INITIAL_DECAY_LOGIT = 1.5  # tanh(1.5) = 0.905: a memory of about ten tokens


class TilelliPart(nn.Module):
    """A module that computes with operators; ``operations`` says in which form."""

    operations: Operations = FAST


class TernaryLinear(TilelliPart):
    """Linear map with ternary weights, no bias, activations as they come: ``(..., in) → (..., out)``.

    Args:
        in_features: W ~ N(0, 1/in_features).
        out_features: number of outputs.
        quantize: False uses W itself.
    """

    def __init__(self, in_features: int, out_features: int, quantize: bool = True):
        super().__init__()
        self.quantize = quantize
        self.weight = nn.Parameter(torch.randn(out_features, in_features) * in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """``x Ŵᵀ``, with one scale for the whole of W."""
        weight = self.operations.ternary(self.weight, (0, 1)) if self.quantize else self.weight
        return F.linear(x, weight)


class WeightBank(TilelliPart):
    """N weights of one shape; calling it gives the effective ones, ``(N, *shape)``, a ternary scale per bank.

    Args:
        n_banks: N.
        shape: of one weight.
        variance: of the initial normal distribution.
        quantize: False gives the weights themselves.
    """

    def __init__(self, n_banks: int, shape: tuple[int, ...], variance: float, quantize: bool = True):
        super().__init__()
        self.quantize = quantize
        self.weight = nn.Parameter(torch.randn(n_banks, *shape) * variance**0.5)

    def forward(self) -> Tensor:
        """The weights to compute with."""
        if not self.quantize:
            return self.weight
        return self.operations.ternary(self.weight, tuple(range(1, self.weight.dim())))


class TernaryCausalConv1d(WeightBank):
    """Depthwise causal convolution over the sequence; the last tap is the current position, no bias.

    Args:
        d_model: channels.
        kernel_size: K; W ~ N(0, 1/K).
        n_banks: N.
        quantize: False uses W itself.
    """

    def __init__(self, d_model: int, kernel_size: int, n_banks: int = 1, quantize: bool = True):
        super().__init__(n_banks, (d_model, kernel_size), 1 / kernel_size, quantize)

    def forward(self, h: Tensor, bank: Tensor) -> Tensor:  # type: ignore[override]
        """``(B, T, D)`` and each token's bank ``(B, T)`` to ``(B, T, D)``."""
        return self.operations.banked_causal_conv(h, super().forward(), bank)


class DiagonalSSM(TilelliPart):
    """Diagonal state space: ``s_t = a ⊙ s_{t−1} + b ⊙ h_t``, ``y_t = c ⊙ s_t``, ``a = tanh(decay_logit)``.

    Never quantised; the state is fp32 under autocast too.

    Args:
        d_model: channels; b, c ~ N(0, 1/D).
        n_banks: N.
    """

    def __init__(self, d_model: int, n_banks: int = 1):
        super().__init__()
        self.decay_logit = nn.Parameter(torch.full((n_banks, d_model), INITIAL_DECAY_LOGIT))
        self.input_gain = nn.Parameter(torch.randn(n_banks, d_model) * d_model**-0.5)
        self.output_gain = nn.Parameter(torch.randn(n_banks, d_model) * d_model**-0.5)

    def forward(self, h: Tensor, bank: Tensor) -> Tensor:
        """``(B, T, D)`` and each token's bank ``(B, T)`` to ``(B, T, D)``."""
        decay = torch.tanh(self.decay_logit)
        return self.operations.banked_diagonal_scan(h, decay, self.input_gain, self.output_gain, bank)


class SparseCausalAttention(TilelliPart):
    """One attention head over each query's ``min(top_k, t+1)`` best positions ≤ t, without output projection.

    Args:
        d_model: width of input and values.
        d_head: width of queries and keys.
        top_k: positions kept per query.
        n_banks: N.
        quantize: False uses the weights themselves.
    """

    def __init__(
        self, d_model: int, d_head: int = 32, top_k: int = 8, n_banks: int = 1, quantize: bool = True
    ):
        super().__init__()
        self.top_k = top_k
        self.query = WeightBank(n_banks, (d_head, d_model), 1 / d_model, quantize)
        self.key = WeightBank(n_banks, (d_head, d_model), 1 / d_model, quantize)
        self.value = WeightBank(n_banks, (d_model, d_model), 1 / d_model, quantize)

    def forward(self, h: Tensor, bank: Tensor) -> Tensor:
        """``(B, T, D)`` and each token's bank ``(B, T)`` to ``(B, T, D)``."""
        return self.operations.banked_sparse_attention(
            h, self.query(), self.key(), self.value(), bank, self.top_k
        )


class TernaryFFN(TilelliPart):
    """Feed-forward network ``down(gelu(up(h)))`` with exact (erf) GELU.

    Args:
        d_model: width.
        expand: hidden width over ``d_model``.
        n_banks: N.
        quantize: False uses the weights themselves.
    """

    def __init__(self, d_model: int, expand: int = 2, n_banks: int = 1, quantize: bool = True):
        super().__init__()
        self.up = WeightBank(n_banks, (expand * d_model, d_model), 1 / d_model, quantize)
        self.down = WeightBank(n_banks, (d_model, expand * d_model), 1 / (expand * d_model), quantize)

    def forward(self, h: Tensor, bank: Tensor) -> Tensor:
        """``(B, T, D)`` and each token's bank ``(B, T)`` to ``(B, T, D)``."""
        return self.operations.banked_ffn(h, self.up(), self.down(), bank)
