"""Softmax attention as a part that can be exchanged, and the cache that lets it go on from where it stands.

Shape suffixes: B batch, H heads, T sequence, d head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.models.activations import is_asked_for, with_weights


class SoftmaxAttention(nn.Module):
    """``softmax(q kᵀ / √d) v`` over positions ≤ t, without weights of its own.

    Attention layers hold one under the name ``core``. Whatever takes the same tensors may stand in its place:
    an analysis exchanges it for the time of a measurement, an architecture for good.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
        """Mix values.

        Args:
            q: ``(B, H, T, d)``, the queries of the last T of S positions.
            k: ``(B, H, S, d)``, S ≥ T.
            v: ``(B, H, S, d)``.
            dropout: probability with which an attention weight is dropped; 0 in evaluation.

        Returns:
            ``(B, H, T, d)``.
        """
        T, S = q.shape[-2], k.shape[-2]
        if T == S:
            mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        else:
            mixed = F.scaled_dot_product_attention(
                q, k, v, attn_mask=causal_mask(T, S, q.device), dropout_p=dropout
            )
        return with_weights(self, mixed, q, k, v, dropout) if is_asked_for(self, "weights") else mixed


def causal_mask(T: int, S: int, device: torch.device) -> Tensor | None:
    """``(T, S)`` bool, True where the query of one of the last T of S positions may look; None where all may."""
    if T == 1:
        return None
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)


def key_value_bytes(n_layers: int, embedding: nn.Embedding, n_tokens: int, max_context: int) -> int:
    """Bytes of the keys and values that attention keeps of a text.

    Args:
        n_layers: layers of attention.
        embedding: of the tokens, whose width D and format keys and values of all heads have together.
        n_tokens: of the text.
        max_context: most of them that are kept.
    """
    numbers = 2 * n_layers * embedding.embedding_dim * min(n_tokens, max_context)
    return numbers * embedding.weight.element_size()


class KeyValueCache:
    """Keys and values of the positions that an attention layer has read, of one layer.

    Args:
        capacity: S, the most positions that it can hold; memory is taken once, at the first append.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Takes in the ``(B, H, T, d)`` keys and values of the next T positions.

        Returns:
            Keys and values of all positions so far, ``(B, H, length, d)``.
        """
        if self._keys is None or self._values is None:
            B, H, _, _ = k.shape
            self._keys = k.new_empty(B, H, self.capacity, k.shape[-1])
            self._values = v.new_empty(B, H, self.capacity, v.shape[-1])
        start, self.length = self.length, self.length + k.shape[-2]
        assert self.length <= self.capacity, "generation refills the cache before it overflows"
        self._keys[:, :, start : self.length] = k
        self._values[:, :, start : self.length] = v
        return self._keys[:, :, : self.length], self._values[:, :, : self.length]
