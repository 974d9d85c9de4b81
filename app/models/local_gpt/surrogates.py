"""Activations, norms and attention mixing whose backward pass is written by hand.

``projected`` and :func:`softmax_value_mix` equal the exact gradient: they are oracles that show the algebra, and a
network takes the fast exact kernel in their place. The others are real ablations.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from app.models.layers import LayerNorm
from app.models.rules import FollowsRule
from app.ops.layer_norm import layer_norm
from app.ops.layer_norm.vectorized import wide, without_constant_rows

LAYER_NORM_EPS = 1e-5  # PyTorch's


def sigmoid_ste(x: Tensor) -> Tensor:
    """Sigmoid that passes gradients straight through (Bengio, Léonard & Courville 2013)."""
    y: Tensor = _StraightThrough.apply(x, torch.sigmoid)
    return y


def gelu_ste(x: Tensor) -> Tensor:
    """Exact (erf) GELU that passes gradients straight through."""
    y: Tensor = _StraightThrough.apply(x, F.gelu)
    return y


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Any) -> Tensor:
        y: Tensor = function(x)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class GELU(nn.Module, FollowsRule):
    """Exact (erf) GELU, exact or straight through backwards.

    Args:
        straight_through: whether gradients pass unchanged.
    """

    def __init__(self, straight_through: bool = False):
        super().__init__()
        if straight_through:
            self.rules, self.rule = ("bp", "ste"), "ste"

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return gelu_ste(x) if self.rule == "ste" else F.gelu(x)

    def slope(self, x: Tensor) -> Tensor:
        """The derivative with which gradients pass, elementwise and without a graph."""
        ones = torch.ones_like(x)
        return ones if self.rule == "ste" else torch.ops.aten.gelu_backward(ones, x.detach())


class LayerNormSTE(LayerNorm, FollowsRule):
    """LayerNorm with ``∂L/∂x := g``; gain and bias get their exact gradient.

    Args:
        d_model: width of the last axis.
        train_affine: whether gain and bias learn.
        eps: added to the variance.
    """

    def __init__(self, d_model: int, train_affine: bool = True, eps: float = LAYER_NORM_EPS):
        super().__init__(d_model, eps=eps)
        self.rules, self.rule = ("bp", "ste"), "ste"
        for parameter in self.parameters():
            parameter.requires_grad_(train_affine)

    def forward(self, x: Tensor) -> Tensor:
        """``(…, D) → (…, D)``."""
        if self.rule == "bp":
            return super().forward(x)
        y: Tensor = _StraightThroughNorm.apply(wide(x), wide(self.weight), wide(self.bias), self.eps)
        return _narrow(y, x)


class _StraightThroughNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y, mean, reciprocal = torch.native_layer_norm(x, x.shape[-1:], weight, bias, eps)
        ctx.save_for_backward(x, mean, reciprocal)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = gradients
        x, mean, reciprocal = ctx.saved_tensors
        z = (x - mean) * reciprocal
        width = x.shape[-1:]
        return g, (g * z).sum_to_size(width), g.sum_to_size(width), None


class LayerNormSurrogate(nn.Module, FollowsRule):
    """LayerNorm whose backward pass is a chosen formula; gain and bias are applied outside of it, exactly.

    With z the normalised input, σ its standard deviation and v the gradient of z:

    - ``projected``: ``(v − mean v − z · mean(v z)) / σ``, the exact gradient.
    - ``center_scale``: ``(v − mean v) / σ``, without the projection.

    Nothing is sent into a constant row, see :func:`~app.ops.layer_norm.layer_norm`.

    Args:
        mode: which formula.
        d_model: width of the last axis, for gain and bias; None for none.
        eps: added to the variance.
        elementwise_affine: False for no gain and bias whatever the width.

    Raises:
        ValueError: an unknown mode.
    """

    def __init__(
        self,
        mode: Literal["projected", "center_scale"],
        d_model: int | None = None,
        eps: float = LAYER_NORM_EPS,
        elementwise_affine: bool = True,
    ):
        super().__init__()
        if mode not in ("projected", "center_scale"):
            raise ValueError(f"mode = {mode!r}: must be projected or center_scale")
        self.rules, self.rule = ("bp", mode), mode
        self.eps = eps
        has_affine = elementwise_affine and d_model is not None
        self.weight = nn.Parameter(torch.ones(d_model or 0)) if has_affine else None
        self.bias = nn.Parameter(torch.zeros(d_model or 0)) if has_affine else None

    def forward(self, x: Tensor) -> Tensor:
        """``(…, D) → (…, D)``."""
        if self.rule == "bp":
            return layer_norm(x, self.weight, self.bias, self.eps)
        z: Tensor = _SurrogateNorm.apply(wide(x), self.rule == "projected", self.eps)
        if self.weight is None or self.bias is None:
            return _narrow(z, x)
        return _narrow(torch.addcmul(wide(self.bias), z, wide(self.weight)), x)


class _SurrogateNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, projects: bool, eps: float) -> Tensor:
        z, _, reciprocal = torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
        ctx.projects = projects
        ctx.save_for_backward(z if projects else None, without_constant_rows(reciprocal, eps))
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (v,) = gradients
        z, reciprocal = ctx.saved_tensors
        down = v - v.mean(-1, keepdim=True)
        if ctx.projects:
            down = down - z * (v * z).mean(-1, keepdim=True)
        return down * reciprocal, None, None


def softmax_value_mix(scores: Tensor, values: Tensor) -> Tensor:
    """``O = softmax(S) V`` with the fused backward ``dS = A ⊙ (dO Vᵀ − ⟨dO, O⟩)``, ``dV = Aᵀ dO``: the exact one.

    Args:
        scores: S ``(…, T, S)``; −∞ where a query may not look.
        values: V ``(…, S, d)``.

    Returns:
        ``(…, T, d)``.
    """
    mixed: Tensor = _SoftmaxValueMix.apply(scores, values)
    return mixed


class _SoftmaxValueMix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, values: Tensor) -> Tensor:
        attention = scores.softmax(-1)
        mixed = attention @ values
        ctx.save_for_backward(attention, values, mixed)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (g,) = gradients
        attention, values, mixed = ctx.saved_tensors
        d_scores = attention * (g @ values.transpose(-2, -1) - (g * mixed).sum(-1, keepdim=True))
        return d_scores, attention.transpose(-2, -1) @ g


def _narrow(y: Tensor, x: Tensor) -> Tensor:
    """As wide as ``x`` again, where no autocast decides."""
    return y if torch.is_autocast_enabled(x.device.type) else y.to(x.dtype)
