"""What the networks have in common: how weights start, the norm of a row, and what a token costs."""

from typing import TypeVar

import torch
from torch import Tensor, nn

from app.ops.embedding import embedding
from app.ops.layer_norm import layer_norm
from app.ops.precision import matmul_dtype

INITIAL_STD = 0.02  # GPT-2's
M = TypeVar("M", bound=nn.Module)


class LayerNorm(nn.LayerNorm):
    """LayerNorm that sends no gradient into a constant row; every other row has PyTorch's. See
    :func:`app.ops.layer_norm.layer_norm`.

    Args:
        normalized_shape: D.
        eps: added to the variance.
        for_products: what reads it computes in autocast's format, as linear layers and convolutions do: it is rounded
            once, here, and not by each of them.
    """

    def __init__(self, normalized_shape: int, eps: float = 1e-5, *, for_products: bool = False):
        super().__init__(normalized_shape, eps)
        self.for_products = for_products

    def forward(self, x: Tensor) -> Tensor:
        """``(…, D) → (…, D)``."""
        # Linear layers leave fp64 as it is too.
        is_rounded = self.for_products and x.dtype != torch.float64
        return layer_norm(x, self.weight, self.bias, self.eps, matmul_dtype(x) if is_rounded else None)


class Embedding(nn.Embedding):
    """Embedding whose gradient has one order and is fast: see :func:`app.ops.embedding.embedding`."""

    def forward(self, idx: Tensor) -> Tensor:
        """``(…) → (…, D)``."""
        return embedding(idx, self.weight)


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
