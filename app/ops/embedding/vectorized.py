"""Fast form of the embedding: on a GPU a gradient that is added up in one order without atomic additions.

Shape suffixes: S tokens, V rows, D width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: rows up to which a product with one-hot rows is faster than to sort
FEW_ROWS = 512


def embedding(idx: Tensor, weight: Tensor) -> Tensor:
    """``weight[idx]``, the row of each token.

    Args:
        idx: ``(…)`` int64, each below V.
        weight: ``(V, D)``.

    Returns:
        ``(…, D)``.
    """
    if idx.device.type == "cpu":
        return F.embedding(idx, weight)
    y: Tensor = Embedding.apply(idx, weight)
    return y


class Embedding(torch.autograd.Function):
    """The rows of tokens, and sums of gradients that have one order."""

    @staticmethod
    def forward(ctx: Any, idx: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(idx)
        ctx.n_rows, ctx.dtype = len(weight), weight.dtype
        return F.embedding(idx, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        (idx,) = ctx.saved_tensors
        grad_SD = gradients[0].reshape(-1, gradients[0].shape[-1])
        with torch.autocast(grad_SD.device.type, enabled=False):
            add_up = by_product if ctx.n_rows <= FEW_ROWS else by_sorting
            return None, add_up(idx.reshape(-1), grad_SD, ctx.n_rows).to(ctx.dtype)


def by_product(idx_S: Tensor, grad_SD: Tensor, n_rows: int) -> Tensor:
    """Sums of the gradients of each row's tokens ``(V, D)``, as a product with zeros and ones."""
    rows = torch.arange(n_rows, device=idx_S.device)
    return (rows[:, None] == idx_S).to(grad_SD.dtype) @ grad_SD


def by_sorting(idx_S: Tensor, grad_SD: Tensor, n_rows: int) -> Tensor:
    """The same, each row's tokens lying together."""
    sorted_S, order_S = idx_S.sort(stable=True)
    starts = torch.searchsorted(sorted_S, torch.arange(n_rows + 1, device=idx_S.device))
    # `unsafe`: the checks of lengths would wait for the GPU.
    return torch.segment_reduce(grad_SD[order_S], "sum", offsets=starts, unsafe=True)
