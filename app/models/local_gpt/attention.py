"""Attention with sigmoid or softmax weights.

Shape suffixes: B batch, H heads, T queries, S keys, D width, d head width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.models.attention import KeyValueCache, SoftmaxAttention, causal_mask
from app.models.local_gpt.config import LocalGPTConfig, SigmoidBias
from app.models.local_gpt.surrogates import sigmoid_ste
from app.models.local_linear import LocalLinear
from app.models.rules import FollowsRule


class SigmoidAttention(nn.Module, FollowsRule):
    """``sigmoid(q kᵀ / √d + b) v`` over positions ≤ t (Ramapuram et al. 2024); weights are formed as ``(T, S)``.

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
        T, S = q.shape[-2], k.shape[-2]
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, H, T, S)
        # A bias of −5 in bf16 would be off by several per cent once through the sigmoid.
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) + bias
        mask = causal_mask(T, S, q.device)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        weights = sigmoid_ste(scores) if self.rule == "ste" else torch.sigmoid(scores)
        return F.dropout(weights.to(v.dtype), dropout) @ v


class LocalSelfAttention(nn.Module):
    """Multi-head attention over positions ≤ t, ``(B, T, D) → (B, T, D)``.

    Softmax weights come from the module ``core``, which can be exchanged as in every architecture. The fused form of
    :func:`~app.models.local_gpt.softmax_value_mix` computes the same gradient, so that ``fuse_attn_local`` runs
    through it too.
    """

    def __init__(self, config: LocalGPTConfig):
        super().__init__()
        D = config.n_embd
        self.n_heads = config.n_head
        self.dropout = config.dropout
        self.block_size = config.block_size
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
        if cache is not None:
            k, v = cache.append(k, v)
        dropout = self.dropout if self.training else 0.0
        if isinstance(self.core, SigmoidAttention):
            y = self.core(q, k, v, dropout, self._bias(q, k.shape[-2]))
        else:
            y = self.core(q, k, v, dropout)
        y = self.o_proj(y.transpose(1, 2).flatten(2))  # (B, T, D)
        return F.dropout(y, self.dropout, self.training)

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
