"""Fast form of LayerNorm: PyTorch's own, but for the gradient of constant rows."""

from typing import Any

import torch
from torch import Tensor

_BACKWARD = torch.ops.aten.native_layer_norm_backward.default


def layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype | None = None
) -> Tensor:
    """LayerNorm over the last axis that sends no gradient into a constant row, whose direction it cannot tell.

    ``(x − mean x) / √(var x + ε)`` divides by a guard where the variance is 0: there it is only by ε that it has a
    derivative, 1/√ε = 316. A token of which dropout has left nothing stays a row of zeros through the blocks, and
    each norm on its way multiplies its gradient by 316 again: to 10¹⁵ over 6 blocks whose norms follow one another,
    beyond fp32 over 12 and more. The function without the guard has no derivative at such a row; of its
    generalised ones 0 is the symmetric one, as for ``|x|`` at 0 or ``√`` in a norm.

    Args:
        x: ``(…, D)``.
        weight: gain ``(D)``, or none.
        bias: ``(D)``, or none.
        eps: ε, added to the variance.
        dtype: of the result, rounded once at its end.

    Returns:
        ``(…, D)``; without ``dtype`` under autocast on a GPU in fp32 at least, elsewhere in the format of ``x``.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        # As `F.layer_norm`, which asks about cuDNN first: a fifth of the time of a single row.
        still = torch.layer_norm(x, x.shape[-1:], weight, bias, eps)
        return still if dtype is None else still.to(dtype)
    if _autocast_widens(x):
        # As autocast has it there; it does not look into functions of our own.
        x, weight, bias = (
            wide(x),
            None if weight is None else wide(weight),
            None if bias is None else wide(bias),
        )
    y: Tensor = _LayerNorm.apply(x, weight, bias, eps)
    return y if dtype is None else y.to(dtype)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        y, mean, reciprocal = torch.native_layer_norm(x, x.shape[-1:], weight, bias, eps)
        ctx.eps = eps
        ctx.save_for_backward(x, weight, bias, mean, reciprocal)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, reciprocal = ctx.saved_tensors
        factor = without_constant_rows(reciprocal, ctx.eps)
        wanted = ctx.needs_input_grad[:3]
        return *_BACKWARD(gradients[0], x, x.shape[-1:], mean, factor, weight, bias, wanted), None


def without_constant_rows(reciprocal: Tensor, eps: float) -> Tensor:
    """``1/√(var + eps)`` of each row, 0 where the variance is 0 to rounding: a factor of gradients.

    Args:
        reciprocal: as ``native_layer_norm`` returns it; its type says what rounding is.
        eps: added to the variance.
    """
    return torch.where(reciprocal < of_constant_row(eps, reciprocal.dtype), reciprocal, 0.0)


def of_constant_row(eps: float, dtype: torch.dtype) -> float:
    """A reciprocal from here on is that of a constant row.

    A few units in the last place below 1/√eps: a GPU's own root is that far off.
    """
    return float(eps**-0.5 * (1 - 4 * torch.finfo(dtype).eps))


def wide(x: Tensor) -> Tensor:
    """In fp32 at least, as autocast would have a LayerNorm."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def format_of(x: Tensor) -> torch.dtype:
    """The format of the norm of ``x``: as autocast has it, which leaves norms alone on the CPU."""
    return torch.promote_types(x.dtype, torch.float32) if _autocast_widens(x) else x.dtype


def _autocast_widens(x: Tensor) -> bool:
    return x.device.type != "cpu" and torch.is_autocast_enabled(x.device.type)
