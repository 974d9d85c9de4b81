"""What the networks have in common: how weights start, the norm of a row, and what a token costs."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

INITIAL_STD = 0.02  # GPT-2's
M = TypeVar("M", bound=nn.Module)


class LayerNorm(nn.LayerNorm):
    """LayerNorm that sends no gradient into a constant row, whose direction it cannot tell.

    ``(x − mean x) / √(var x + ε)`` divides by a guard where the variance is 0: there it is only by ε that it has a
    derivative, 1/√ε = 316. A token of which dropout has left nothing stays a row of zeros through the blocks, and
    each norm on its way multiplies its gradient by 316 again: to 10¹⁵ over 6 blocks whose norms follow one another,
    beyond fp32 over 12 and more. The function without the guard has no derivative at such a row; of its
    generalised ones 0 is the symmetric one, as for ``|x|`` at 0 or ``√`` in a norm. Every other row has PyTorch's
    gradient to the last bit.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(…, D) → (…, D)``."""
        return layer_norm(x, self.weight, self.bias, self.eps)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """:class:`LayerNorm` over the last axis of ``x (…, D)``, with gain and bias ``(D)`` or without."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        # As `F.layer_norm`, which asks about cuDNN first: a fifth of the time of a single row.
        return torch.layer_norm(x, x.shape[-1:], weight, bias, eps)
    if x.device.type != "cpu" and torch.is_autocast_enabled(x.device.type):
        # As autocast has it there (on the CPU it leaves norms alone); it does not look into functions of our own.
        x, weight, bias = (
            wide(x),
            None if weight is None else wide(weight),
            None if bias is None else wide(bias),
        )
    y: Tensor = _LayerNorm.apply(x, weight, bias, eps)
    return y


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


_BACKWARD = torch.ops.aten.native_layer_norm_backward.default


def without_constant_rows(reciprocal: Tensor, eps: float) -> Tensor:
    """``1/√(var + eps)`` of each row, 0 where the variance is 0 to rounding: a factor of gradients.

    Args:
        reciprocal: as ``native_layer_norm`` returns it; its type says what rounding is.
        eps: added to the variance.
    """
    # A few units in the last place below 1/√eps: a GPU's own root is that far off.
    of_constant_row = eps**-0.5 * (1 - 4 * torch.finfo(reciprocal.dtype).eps)
    return torch.where(reciprocal < of_constant_row, reciprocal, 0.0)


def wide(x: Tensor) -> Tensor:
    """In fp32 at least, as autocast would have a LayerNorm."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def modules_of(owner: nn.Module, kind: type[M]) -> list[M]:
    """The outermost modules of one type inside of ``owner``, in order of depth.

    What a network reads off its blocks it finds so, since an entry of ``blocks`` may be a wrapper around one
    (``torch.compile``, FSDP) that has no attribute of it. The entries themselves are only ever called.
    """
    found: list[M] = []
    for child in owner.children():
        found += [child] if isinstance(child, kind) else modules_of(child, kind)
    return found


def initial_std(name: str, n_layers: int) -> float:
    """Standard deviation that a matrix starts with (Radford et al. 2019), so that the stream keeps its variance.

    Args:
        name: of the matrix or of its layer; projections onto the residual stream are called ``o_proj`` and
            ``mlp.proj``.
        n_layers: blocks, each of which adds to the stream twice.
    """
    onto_residual = name.removesuffix(".weight").endswith(("o_proj", "mlp.proj"))
    return INITIAL_STD / (2 * n_layers) ** 0.5 if onto_residual else INITIAL_STD


def transformer_flops(
    n_layers: int,
    d_model: int,
    vocab_size: int,
    block_size: int,
    *,
    per_weight: float = 6.0,
    per_score: float = 6.0,
) -> float:
    """Training FLOPs of one token: 2 per multiply-add forward, 4 backward (Kaplan et al. 2020).

    Args:
        n_layers: blocks of 12 D² weights.
        d_model: D.
        vocab_size: V, rows of the head.
        block_size: T; a query meets (T + 1) / 2 keys and values on average.
        per_weight: FLOPs per weight of a block: less than 6 where not all of the backward pass is run.
        per_score: the same for the products of attention, which have no weights.
    """
    blocks = per_weight * 12 * d_model**2 + per_score * (block_size + 1) * d_model
    return n_layers * blocks + 6.0 * vocab_size * d_model
