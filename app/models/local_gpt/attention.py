"""Attention with sigmoid or softmax weights.

Shape suffixes: B batch, H heads, T queries, S keys, D width, d head width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.models.activations import is_asked_for, tap
from app.models.attention import KeyValueCache, SoftmaxAttention
from app.models.local_gpt.config import LocalGPTConfig, SigmoidBias
from app.models.local_linear import LocalLinear
from app.models.rules import FollowsRule
from app.ops.sigmoid_attention import dropped_weights, sigmoid_attention, sigmoid_weights


class SigmoidAttention(nn.Module, FollowsRule):
    """``sigmoid(q kᵀ / √d + b) v`` over positions ≤ t (Ramapuram et al. 2024).

    Args:
        straight_through: whether the sigmoid passes gradients unchanged.
    """

    def __init__(self, straight_through: bool = False):
        super().__init__()
        if straight_through:
            self.rules, self.rule = ("bp", "ste"), "ste"

    def forward(self, q: Tensor, k: Tensor, v: Tensor, dropout: float, bias: Tensor) -> Tensor:
        """Mix values.

        Args:
            q: ``(B, H, T, d)``, the queries of the last T of S positions.
            k: ``(B, H, S, d)``, S ≥ T.
            v: ``(B, H, S, d)``.
            dropout: probability with which an attention weight is dropped; 0 in evaluation.
            bias: ``()`` or ``(T, 1)``, added to the scores before the mask.

        Returns:
            ``(B, H, T, d)``.
        """
        straight_through = self.rule == "ste"
        if not is_asked_for(self, "weights"):
            return sigmoid_attention(q, k, v, bias, dropout, straight_through)
        weights = tap(self, "weights", sigmoid_weights(q, k, bias, straight_through))
        return dropped_weights(weights.to(v.dtype), dropout) @ v


class LocalSelfAttention(nn.Module):
    """Multi-head attention over positions ≤ t, ``(B, T, D) → (B, T, D)``.

    Softmax weights come from the module ``core``, which can be exchanged as in every architecture. The fused form of
    :func:`~app.models.local_gpt.softmax_value_mix` computes the same gradient, so that ``fuse_attn_local`` runs
    through it too.
    """

    def __init__(self, config: LocalGPTConfig):
        super().__init__()
        D = config.d_model
        self.n_heads = config.n_heads
        self.dropout = config.dropout
        self.block_size = config.block_size
        self.derivative = config.method == "dfa" and config.dfa_derivative
        self.bias_mode: SigmoidBias = config.sigmoid_bias_mode
        self.q_proj = linear(config, D, D)
        self.k_proj = linear(config, D, D)
        self.v_proj = linear(config, D, D)
        self.o_proj = linear(config, D, D)
        self.core = (
            SoftmaxAttention() if config.attn_mode == "softmax" else SigmoidAttention(config.ste_sigmoid)
        )
        self.sig_bias: nn.Parameter | None = None
        if config.attn_mode == "sigmoid" and self.bias_mode == "learned":
            wide = torch.promote_types(torch.get_default_dtype(), torch.float32)
            self.sig_bias = nn.Parameter(torch.tensor(-math.log(config.block_size), dtype=wide))

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Mix positions, those in the cache before those of ``x``; the residual dropout is applied here."""
        q, k, v = (
            proj(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # (B, H, T, d)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k, v = tap(self, "q", q), tap(self, "k", k), tap(self, "v", v)
        if cache is not None:
            k, v = cache.append(k, v)
        dropout = self.dropout if self.training else 0.0
        if isinstance(self.core, SigmoidAttention):
            z = self.core(q, k, v, dropout, self._bias(q, k.shape[-2]))
        else:
            z = self.core(q, k, v, dropout)
        z = tap(self, "z", z)
        return dropped(self, self.o_proj, z.transpose(1, 2).flatten(2), dropout, self.derivative)  # (B, T, D)

    def _bias(self, q: Tensor, S: int) -> Tensor:
        """Added to the scores of the last T of S positions: ``()``, or ``(T, 1)`` by row; in fp32 at least.

        Args:
            q: ``(B, H, T, d)``, for T, device and type.
            S: positions in all.
        """
        if self.sig_bias is not None:
            return self.sig_bias
        T, dtype = q.shape[-2], torch.promote_types(q.dtype, torch.float32)
        if self.bias_mode == "row":
            return -torch.arange(S - T + 1, S + 1, device=q.device, dtype=dtype).log()[:, None]
        constant = 0.0 if self.bias_mode == "zero" else -math.log(self.block_size)
        return torch.full((), constant, device=q.device, dtype=dtype)


def linear(config: LocalGPTConfig, n_in: int, n_out: int) -> LocalLinear:
    """A linear layer of the blocks, learning by the configured rule."""
    return LocalLinear(
        n_in,
        n_out,
        config.bias,
        config.method,
        n_logits=config.vocab_size,
        propagate=config.dfa_propagate,
        init=config.fa_init_mode,
        sparse_k=config.fa_sparse_k,
        seed=config.seed,
        draws_feedback=False,  # for the weights as the network initialises them
    )


def dropped(owner: nn.Module, layer: LocalLinear, x: Tensor, dropout: float, derivative: bool) -> Tensor:
    """The output of a layer after dropout.

    Args:
        owner: offers the output before dropout as ``out``.
        layer: which.
        x: its input.
        dropout: probability; 0 in evaluation.
        derivative: whether the mask is also one of the error that the layer learns from.
    """
    y = tap(owner, "out", layer(x))
    if not (derivative and dropout > 0):
        return F.dropout(y, dropout)
    mask = F.dropout(torch.ones_like(y), dropout)
    layer.multiply_error(mask)
    return y * mask
