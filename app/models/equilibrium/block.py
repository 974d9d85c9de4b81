"""One layer: attention, a residual over depth, a feed-forward network.

Shape suffixes: B batch, T sequence, Q tokens processed again, D width, H heads, d head width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.models.activations import is_watched, tap
from app.models.attention import SoftmaxAttention
from app.models.equilibrium.attention_residual import AttentionResidual, TransposedLinear
from app.models.layers import LayerNorm
from app.ops.second_pass import second_pass
from app.ops.second_pass.room import has_kernels


class KeysValues(NamedTuple):
    """What an attention layer computed in its first pass, each ``(B, H, T, d)``."""

    keys: Tensor
    values: Tensor


class SecondPass(NamedTuple):
    """Tokens that come back to a block from a later one.

    Attributes:
        position: ``(B, Q)`` or ``(1, Q)`` int64, where they stand.
        first: the block's keys and values of the first pass; None lets a token look at itself alone.
    """

    position: Tensor
    first: KeysValues | None


class PackedPass(NamedTuple):
    """A second pass that is computed of its takers alone.

    Attributes:
        taken: ``(B, T)`` bool, who takes it.
        first: as in :class:`SecondPass`.
    """

    taken: Tensor
    first: KeysValues | None


class MultiHeadAttention(nn.Module):
    """Causal softmax attention without biases."""

    def __init__(self, d_model: int, n_heads: int, dropout: float):
        super().__init__()
        self.n_heads = n_heads
        self.dropout = dropout
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)
        self.core = SoftmaxAttention()

    def forward(self, x: Tensor) -> tuple[Tensor, KeysValues]:
        """``(B, T, D) → (B, T, D)``, and keys and values for who comes back."""
        q, k, v = (
            tap(self, name, self._heads(projection, x))
            for name, projection in (("q", self.q_proj), ("k", self.k_proj), ("v", self.v_proj))
        )
        z = tap(self, "z", self.core(q, k, v, self._dropout()))
        return tap(self, "out", self._joined(z)), KeysValues(k, v)

    def alone(self, x: Tensor) -> Tensor:
        """``(B, Q, D) → (B, Q, D)``, each token as a sequence of one: all attention goes to its own value."""
        v = self._heads(self.v_proj, x)
        weight = F.dropout(v.new_ones(*v.shape[:-1], 1), self.dropout, self.training)
        return self._joined(v * weight)

    def again(self, x: Tensor, position: Tensor, first: KeysValues) -> Tensor:
        """Tokens with a new input among the others as they were.

        Args:
            x: ``(B, Q, D)``.
            position: ``(B, Q)`` or ``(1, Q)`` int64, where they stand.
            first: keys and values of the first pass; a token looks at those before its position, and at its own
                new ones.

        Returns:
            ``(B, Q, D)``.
        """
        q, k, v = self._heads(self.q_proj, x), self._heads(self.k_proj, x), self._heads(self.v_proj, x)
        T, Q = first.keys.shape[-2], x.shape[1]
        before = torch.arange(T, device=x.device) < position[..., None]  # (B, Q, T)
        itself = torch.eye(Q, dtype=torch.bool, device=x.device).expand(*before.shape[:2], Q)
        mixed = F.scaled_dot_product_attention(
            q,
            torch.cat([first.keys, k], -2),
            torch.cat([first.values, v], -2),
            attn_mask=torch.cat([before, itself], -1).unsqueeze(1),  # (B, 1, Q, T + Q)
            dropout_p=self._dropout(),
        )
        return self._joined(mixed)

    def _heads(self, projection: nn.Linear, x: Tensor) -> Tensor:
        return projection(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # (B, H, T, d)

    def _joined(self, y: Tensor) -> Tensor:
        joined: Tensor = self.o_proj(y.transpose(1, 2).flatten(2))
        return joined

    def _dropout(self) -> float:
        return self.dropout if self.training else 0.0


class EquilibriumBlock(nn.Module):
    """``z = MHA(LN1 x)``, ``x' = AttentionResidual(z, history)`` or ``LN(x + z)``, ``x' + FF(LN2 x')``.

    Args:
        d_model: D.
        n_heads: H, divides D.
        d_ff: inner width of the feed-forward network.
        dropout: probability, on attention weights and inside and after the feed-forward network.
        use_attention_residual: whether the residual attends over depth.
    """

    def __init__(self, d_model: int, n_heads: int, d_ff: int, dropout: float, use_attention_residual: bool):
        super().__init__()
        self.d_ff = d_ff
        self.ln1 = LayerNorm(d_model, for_products=True)
        self.attn = MultiHeadAttention(d_model, n_heads, dropout)
        self.residual = AttentionResidual(d_model) if use_attention_residual else LayerNorm(d_model)
        self.ln2 = LayerNorm(d_model, for_products=True)
        self.ff = nn.Sequential(
            nn.Linear(d_model, d_ff), nn.GELU(), nn.Dropout(dropout), nn.Linear(d_ff, d_model), nn.Dropout(dropout)
        )  # fmt: skip

    def forward(
        self, x: Tensor, *history: Tensor, second: SecondPass | PackedPass | None = None
    ) -> tuple[Tensor, KeysValues | None]:
        """Processes all tokens, or some of them once more.

        Args:
            x: ``(B, T, D)``, the last of the history; in a second pass ``(B, Q, D)``, what a later block made of the
                tokens.
            history: outputs of the embedding and of all earlier blocks as passed on, each ``(B, T, D)``; in a
                second pass what this block saw in the first, at these tokens, ``(B, Q, D)``.
            second: which tokens come back; None in the first pass. Where it is packed, x and history are those of
                all tokens, and tokens that do not come back stay as they are; only where :meth:`packs` allows it.

        Returns:
            The shape of ``x``, and the keys and values of the first pass.
        """
        if isinstance(second, PackedPass):
            keys, values = second.first or (None, None)
            weights, n_heads = self._weights(), self.attn.n_heads
            y: Tensor = second_pass(x, second.taken, history, weights, n_heads, keys, values, self.ln1.eps)
            return y, second.first
        normed = self.ln1(x)
        if second is None:
            z, first = self.attn(normed)
        else:
            first = second.first
            z = self.attn.alone(normed) if first is None else self.attn.again(normed, second.position, first)
        return self._after_attention(x, z, history), first

    def packs(self, x: Tensor, n_history: int) -> bool:
        """Whether a second pass of ``x`` can be computed of its takers alone, by kernels that read the weights: where
        nobody looks at or changes what the layers do."""
        if not isinstance(self.residual, AttentionResidual) or self._compiled_call_impl is not None:
            return False
        drops = self.training and self.attn.dropout > 0  # as in the feed-forward network
        d_head = self.ln1.normalized_shape[0] // self.attn.n_heads
        with_bias, square = self._layers()
        as_built = is_plain(*with_bias.values(), *square.values())
        return not drops and not is_watched() and as_built and has_kernels(x, n_history, d_head)

    def _layers(self) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
        """Those with a bias and those without, by the names that the second pass has for them."""
        assert isinstance(self.residual, AttentionResidual)
        with_bias = {
            "ln1": self.ln1, "norm": self.residual.norm, "ln2": self.ln2, "up": self.ff[0], "down": self.ff[3]
        }  # fmt: skip
        square: dict[str, nn.Module] = {name: getattr(self.attn, f"{name}_proj") for name in "qkvo"}
        return with_bias, square | {"query": self.residual.query, "key": self.residual.key}

    def _weights(self) -> dict[str, Tensor]:
        with_bias, square = self._layers()
        weights: dict[str, Tensor] = {name: layer.get_parameter("weight") for name, layer in square.items()}
        for name, layer in with_bias.items():
            weights |= {f"{name}.{kind}": layer.get_parameter(kind) for kind in ("weight", "bias")}
        return weights

    def multiply_adds_per_token(self, context: float | None) -> int:
        """Products of one token's pass.

        Args:
            context: keys that it meets; None for a token that is a sequence of its own.
        """
        D, d_ff = self.ln1.normalized_shape[0], self.d_ff
        attention = 2 * D * D if context is None else round(4 * D * D + 2 * context * D)
        over_depth = 2 * D * D if isinstance(self.residual, AttentionResidual) else 0
        return attention + over_depth + 2 * D * d_ff

    def _after_attention(self, x: Tensor, z: Tensor, history: Sequence[Tensor]) -> Tensor:
        over_depth = isinstance(self.residual, AttentionResidual)
        mixed = tap(self, "mid", self.residual(z, history) if over_depth else self.residual(x + z))
        y: Tensor = mixed + tap(self, "mlp.out", self.ff(self.ln2(mixed)))
        return y


def is_plain(*layers: nn.Module) -> bool:
    """Whether linear layers and norms are just that, and do nothing else: no adapter, no rule of learning, no hook."""
    return all(
        type(layer) in (nn.Linear, TransposedLinear, LayerNorm)
        and not (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks)
        for layer in layers
    )
