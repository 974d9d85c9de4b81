"""Fast form of the mixture: a backward that writes each gradient once.

Shape suffixes: S tokens (B·T), P pathways, D width.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor


class _PathwayMix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights_SP: Tensor, *outputs_SD: Tensor) -> Tensor:
        ctx.save_for_backward(weights_SP, *outputs_SD)
        dtype = reduce(torch.promote_types, (output_SD.dtype for output_SD in outputs_SD), weights_SP.dtype)
        mixed_SD = torch.zeros_like(outputs_SD[0], dtype=dtype)
        *before, last = zip(weights_SP.split(1, -1), outputs_SD, strict=True)
        for weight_S1, output_SD in before:
            mixed_SD.addcmul_(weight_S1, output_SD)
        # Not in place: torch.compile loses the gradient of what a function returns that it has written to.
        return torch.addcmul(mixed_SD, *last)

    @staticmethod
    def backward(ctx: Any, grad_SD: Tensor) -> tuple[Tensor, ...]:
        weights_SP, *outputs_SD = ctx.saved_tensors
        d_weights_SP = torch.empty_like(weights_SP)
        d_outputs_SD = []
        product_SD = torch.empty_like(grad_SD)
        for p, output_SD in enumerate(outputs_SD):
            torch.mul(output_SD, grad_SD, out=product_SD)
            torch.sum(product_SD, -1, out=d_weights_SP[:, p])
            d_output_SD = torch.empty_like(output_SD)
            d_outputs_SD.append(torch.mul(weights_SP[:, p, None], grad_SD, out=d_output_SD))
        return d_weights_SP, *d_outputs_SD


def pathway_mix(weights: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """``Σ_p w_p · y_p``, each token's outputs by its own weights.

    Args:
        weights: ``(..., P)``, fp32 at least.
        outputs: P tensors ``(..., D)``.

    Returns:
        ``(..., D)``, in the widest dtype of them all.
    """
    shape = outputs[0].shape
    rows = [output.reshape(-1, shape[-1]) for output in outputs]
    with torch.autocast(weights.device.type, enabled=False):
        mixed: Tensor = _PathwayMix.apply(weights.reshape(-1, len(outputs)), *rows)
    return mixed.view(shape)
