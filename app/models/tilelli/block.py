"""The Tilelli block: several pathways over one normalised input, mixed per token by a router.

Shape suffixes: B batch, T sequence, D width, P pathways, N banks per pathway.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.models.tilelli.parts import (
    DiagonalSSM,
    SparseCausalAttention,
    TernaryCausalConv1d,
    TernaryFFN,
    TernaryLinear,
)

# Which pathways a block of P has, in the order of the router's outputs.
PATHWAYS = {
    3: ("local", "state", "sparse"),
    5: ("local", "wide", "state", "sparse", "dense"),
}
BALANCE_FACTOR = 0.01
SMALLEST_WEIGHT = 1e-12  # under the logarithm of an entropy


class BankRouting(NamedTuple):
    """What the router of one block decided.

    Attributes:
        pathway_weights: ``(B, T, P)``, the weight of each pathway, summing to 1.
        bank_index: ``(B, T, P)`` int64, the bank that the token uses of each pathway.
        bank_probability: ``(P, N)``, mean over the batch of each bank's share.
        aux_loss: ``()``, the load-balance loss of this block, before ``aux_weight``.
    """

    pathway_weights: Tensor
    bank_index: Tensor
    bank_probability: Tensor
    aux_loss: Tensor


class TilelliBlock(nn.Module):
    """``y = x + Σ_p w_p · pathway_p(LayerNorm(x))``, with w and the bank of each pathway chosen per token.

    The router gives one probability r to each bank of each pathway. A pathway's weight is the sum over its
    banks, its bank the most likely one (the first of equals); the choice has no gradient.

    Args:
        d_model: width.
        d_head: width of the sparse pathway's queries and keys.
        kernel_size: taps of the local pathway.
        wide_kernel_size: taps of the wide pathway.
        top_k: positions that the sparse pathway keeps per query.
        pathways: 5 (local, wide, state, sparse, dense) or 3 (local, state, sparse).
        n_banks: copies of each pathway's weights.
        quantize: whether weights are ternary.
        dense_expand: hidden width of the dense pathway over ``d_model``.
        dropout: probability, on the mixed output before it joins the residual stream.

    Raises:
        ValueError: an argument is out of range; the message names every such argument.
    """

    def __init__(
        self,
        d_model: int,
        d_head: int = 32,
        kernel_size: int = 5,
        wide_kernel_size: int = 21,
        top_k: int = 8,
        pathways: int = 5,
        n_banks: int = 1,
        quantize: bool = True,
        dense_expand: int = 2,
        dropout: float = 0.0,
    ):
        super().__init__()
        problems = self.problems(
            d_model=d_model,
            d_head=d_head,
            kernel_size=kernel_size,
            wide_kernel_size=wide_kernel_size,
            top_k=top_k,
            pathways=pathways,
            n_banks=n_banks,
            dense_expand=dense_expand,
            dropout=dropout,
        )
        if problems:
            raise ValueError("\n".join(problems))
        self.pathway_names = PATHWAYS[pathways]
        self.n_banks = n_banks
        self.dropout = dropout
        self.norm = nn.LayerNorm(d_model)
        self.router = TernaryLinear(d_model, pathways * n_banks, quantize)
        self.local = TernaryCausalConv1d(d_model, kernel_size, n_banks, quantize)
        if "wide" in self.pathway_names:
            self.wide = TernaryCausalConv1d(d_model, wide_kernel_size, n_banks, quantize)
        self.state = DiagonalSSM(d_model, n_banks)
        self.sparse = SparseCausalAttention(d_model, d_head, top_k, n_banks, quantize)
        if "dense" in self.pathway_names:
            self.dense = TernaryFFN(d_model, dense_expand, n_banks, quantize)

    @staticmethod
    def problems(*, pathways: int, dropout: float, **counts: int) -> list[str]:
        """A line ``name = value: rule`` for every argument that is out of range."""
        found = [f"{name} = {count}: must be at least 1" for name, count in counts.items() if count < 1]
        if pathways not in PATHWAYS:
            known = " or ".join(f"{p} ({', '.join(names)})" for p, names in PATHWAYS.items())
            found.append(f"pathways = {pathways}: must be {known}")
        if not 0 <= dropout < 1:
            found.append(f"dropout = {dropout}: must lie in [0, 1)")
        return found

    def forward(self, x: Tensor) -> tuple[Tensor, BankRouting]:
        """Mix the pathways of ``x`` ``(B, T, D)`` into ``y`` ``(B, T, D)``; also what the router decided."""
        h = self.norm(x)
        routing = self._route(h)
        mixed = torch.zeros_like(x)
        for p, name in enumerate(self.pathway_names):
            output = getattr(self, name)(h, routing.bank_index[..., p])
            mixed = torch.addcmul(mixed, routing.pathway_weights[..., p, None], output)
        return x + F.dropout(mixed, self.dropout, self.training), routing

    def router_weights(self, x: Tensor) -> Tensor:
        """Weight of each pathway for each token of ``x`` ``(B, T, D)``: ``(B, T, P)``, banks summed."""
        return self._probabilities(self.norm(x)).sum(-1)

    def router_entropy(self, x: Tensor) -> Tensor:
        """Entropy of the pathway weights of each token of ``x`` ``(B, T, D)``: ``(B, T)``, nats."""
        return pathway_entropy(self.router_weights(x))

    def multiply_adds_per_token(self, mean_context: float) -> float:
        """Multiply-adds of one token's forward: its own banks, and the keys that it offers to every bank.

        Args:
            mean_context: positions that a query is scored against, on average.
        """
        D = self.norm.normalized_shape[0]
        d_head = self.sparse.query.weight.shape[1]
        sparse = (1 + self.n_banks) * d_head * D + mean_context * d_head + (self.sparse.top_k + D) * D
        total = self.router.weight.numel() + self.local.weight[0].numel() + 3 * D + sparse
        if "wide" in self.pathway_names:
            total += self.wide.weight[0].numel()
        if "dense" in self.pathway_names:
            total += self.dense.up.weight[0].numel() + self.dense.down.weight[0].numel()
        return total

    def _probabilities(self, h: Tensor) -> Tensor:
        """r, ``(B, T, P, N)``, summing to 1 over the last two axes; fp32 at least."""
        logits = self.router(h)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits.softmax(-1).unflatten(-1, (len(self.pathway_names), self.n_banks))

    def _route(self, h: Tensor) -> BankRouting:
        r = self._probabilities(h)
        bank_probability = r.mean((0, 1))
        return BankRouting(
            pathway_weights=r.sum(-1),
            bank_index=r.argmax(-1),
            bank_probability=bank_probability,
            aux_loss=balance_loss(bank_probability),
        )


def balance_loss(bank_probability: Tensor) -> Tensor:
    """``0.01 · mean (r̄_pn − 1/N)²`` over the last two axes of ``(..., P, N)``; zero where N = 1.

    The target 1/N cannot be reached, r sums to 1 over all P·N entries; the gradient nevertheless points to
    the uniform spread.
    """
    n_banks = bank_probability.shape[-1]
    if n_banks == 1:
        return bank_probability.new_zeros(bank_probability.shape[:-2])
    return BALANCE_FACTOR * (bank_probability - 1 / n_banks).square().mean((-2, -1))


def pathway_entropy(pathway_weights: Tensor) -> Tensor:
    """Entropy in nats over the last axis, of weights clamped at 1e-12."""
    weights = pathway_weights.clamp(min=SMALLEST_WEIGHT)
    return -(weights * weights.log()).sum(-1)
