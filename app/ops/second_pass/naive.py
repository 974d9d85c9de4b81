"""Reference form of what some tokens pass: every token passes it, and the results of those that take it are kept.

Shape suffixes: B batch, T sequence, D width, H heads, d head width.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from app.ops.depth_attention.naive import depth_attention
from app.ops.layer_norm.naive import layer_norm

# What kernels have room for: the width of a row and of a head, and earlier outputs.
WIDEST, WIDEST_HEAD, MOST_HISTORY = 2048, 128, 12


def second_pass(
    x: Tensor,
    taken: Tensor,
    history: Sequence[Tensor],
    weights: Mapping[str, Tensor],
    n_heads: int,
    keys: Tensor | None = None,
    values: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Tokens that go through an Equilibrium's block once more, among the others as they were.

    Args:
        x: ``(B, T, D)``, what a later block made of the tokens.
        taken: ``(B, T)`` bool, who takes the pass.
        history: n ≥ 1 tensors ``(B, T, D)`` that the block saw in its first pass.
        weights: ``ln1.weight``, ``ln1.bias``, ``ln2.…`` and ``norm.…`` ``(D)`` of the norms before attention, before
            the feed-forward network and of the residual over depth; ``q``, ``k``, ``v``, ``o`` of the attention,
            ``query`` and ``key`` of that residual, each ``(D, D)``; ``up.weight (F, D)``, ``up.bias``,
            ``down.weight (D, F)``, ``down.bias``.
        n_heads: H, divides D.
        keys: ``(B, H, T, d)`` of the first pass: a token looks at those before its position, and at its own new
            one. None, as for the values, lets it look at itself alone; ``q`` and ``k`` are not needed then.
        values: ``(B, H, T, d)``.
        eps: of the norms.

    Returns:
        ``(B, T, D)`` in the format of ``x``: what the block makes of the takers, ``x`` of all others.
    """
    normed = layer_norm(x, weights["ln1.weight"], weights["ln1.bias"], eps)
    v = _heads(F.linear(normed, weights["v"]), n_heads)
    if keys is None or values is None:
        mixed = v
    else:
        q, k = (_heads(F.linear(normed, weights[name]), n_heads) for name in "qk")
        T, scale = x.shape[1], q.shape[-1] ** -0.5
        future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu()
        before = (q @ keys.transpose(-2, -1)).masked_fill(future, float("-inf"))
        itself = (q * k).sum(-1, keepdim=True)
        shares = (scale * torch.cat([before, itself], -1)).softmax(-1)
        mixed = shares[..., :-1] @ values + shares[..., -1:] * v
    z = F.linear(mixed.transpose(1, 2).flatten(2), weights["o"])
    asked = torch.matmul(F.linear(z, weights["query"]), weights["key"]) * z.shape[-1] ** -0.5
    over_depth = depth_attention(asked, z, history)
    stream = layer_norm(over_depth, weights["norm.weight"], weights["norm.bias"], eps)
    normed = layer_norm(stream, weights["ln2.weight"], weights["ln2.bias"], eps)
    active = F.gelu(F.linear(normed, weights["up.weight"], weights["up.bias"]))
    y = stream + F.linear(active, weights["down.weight"], weights["down.bias"])
    return torch.where(taken.unsqueeze(-1), y.to(x.dtype), x)


def adapter_pass(x: Tensor, taken: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """``x + up(gelu(down x))`` for some tokens.

    Args:
        x: ``(B, T, D)``.
        taken: ``(B, T)`` bool, who passes the adapter.
        weights: ``down.weight (F, D)``, ``down.bias``, ``up.weight (D, F)``, ``up.bias``.

    Returns:
        ``(B, T, D)`` in the format of ``x``.
    """
    active = F.gelu(F.linear(x, weights["down.weight"], weights["down.bias"]))
    y = x + F.linear(active, weights["up.weight"], weights["up.bias"])
    return torch.where(taken.unsqueeze(-1), y.to(x.dtype), x)


def _heads(x: Tensor, n_heads: int) -> Tensor:
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)  # (B, H, T, d)
