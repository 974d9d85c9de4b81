"""A residual connection that attends over depth.

Shape suffixes: n earlier outputs, B batch, T sequence, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from app.models.layers import LayerNorm
from app.ops.depth_attention import depth_attention


class TransposedLinear(nn.Linear):
    """``x W`` with W ``(out, in)``, ``(…, out) → (…, in)``: what a linear layer without bias does, backwards.

    With a forward pass of its own, it keeps the exact gradient where other linear layers are made to learn locally.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(…, out) → (…, in)``."""
        return torch.matmul(x, self.weight)


class AttentionResidual(nn.Module):
    """``LN(z + Σ α_i h_i)`` with ``α = softmax_i(W_q z · W_k h_i / √D)``, per token over the earlier outputs.

    ``W_q z · W_k h_i`` is computed as ``(W_kᵀ W_q z) · h_i``: one product per token in place of one per token and
    earlier output.

    Args:
        d_model: D.
    """

    def __init__(self, d_model: int):
        super().__init__()
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = TransposedLinear(d_model, d_model)
        self.norm = LayerNorm(d_model)

    def forward(self, z: Tensor, history: Tensor | Sequence[Tensor]) -> Tensor:
        """Add to what attention gave what the depth below offers.

        Args:
            z: ``(B, T, D)``.
            history: ``(n, B, T, D)`` or n tensors ``(B, T, D)``, oldest first; never written to.

        Returns:
            ``(B, T, D)``.
        """
        asked = self.key(self.query(z)) * z.shape[-1] ** -0.5  # (B, T, D)
        y: Tensor = self.norm(depth_attention(asked, z, list(history)))
        return y
