"""Reference form of the sigmoid attention: all weights of a head at a time."""

from torch import Tensor

from app.ops.sigmoid_attention.dropout import dropped_weights
from app.ops.sigmoid_attention.weights import sigmoid_weights


def sigmoid_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    dropout: float = 0.0,
    straight_through: bool = False,
    seed: Tensor | None = None,
) -> Tensor:
    """``sigmoid(q kᵀ / √d + b) v`` over positions ≤ t (Ramapuram et al. 2024).

    Args:
        q: ``(B, H, T, d)``, the queries of the last T of S positions.
        k: ``(B, H, S, d)``, S ≥ T.
        v: ``(B, H, S, d)``.
        bias: ``()`` or ``(T, 1)``, added to the scores, in fp32 at least.
        dropout: probability with which a weight is dropped, in [0, 1).
        straight_through: the sigmoid passes gradients unchanged.
        seed: ``(2,)`` int32, what the dropped weights follow from, in every form alike; None to draw one from the
            generator of the device.

    Returns:
        ``(B, H, T, d)``.
    """
    weights = sigmoid_weights(q, k, bias, straight_through)
    return dropped_weights(weights.to(v.dtype), dropout, seed) @ v
