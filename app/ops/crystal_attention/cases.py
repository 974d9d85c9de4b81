"""Crystallised attention in each of its modes, for measurements and checks."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from app.ops.case import Arguments, Case, Draw, Size, closest_scores
from app.ops.crystal_attention import crystal_attention, decompose_attention, random_basis

RANK = 16


def _rank(d_head: int) -> int:
    """At most half of the head: with all of it v* cancels, and what is left is small beside its rounding in bf16."""
    return max(1, min(RANK, d_head // 2))


def _heads(size: Size, draw: Draw) -> Arguments:
    n_heads, d = size.heads
    return {name: draw.activation(size.B, n_heads, size.T, d) for name in "qkv"}


def _case(mode: str, **options: Any) -> Case:
    def arguments(size: Size, draw: Draw) -> Arguments:
        n_heads, d = size.heads
        given = _heads(size, draw) | {"mode": mode} | options
        if mode == "topk":
            given["top_k"] = size.top_k
        if mode == "lowrank":
            rank = _rank(d)
            basis = random_basis(n_heads, d, rank).to(draw.device)
            given |= {"rank": rank, "basis": basis.requires_grad_()}
        return given

    def flops(size: Size) -> int:
        n_heads, d = size.heads
        rank = _rank(d)
        # Width of the values that are mixed, and of what a token is projected to and back.
        mixed, projected = {"full": (d, 0), "lowrank": (rank, 3 * rank)}.get(mode, (0, 0))
        n_kept = min(size.top_k, size.T) if mode == "topk" else 0
        tokens = size.B * size.T
        return 2 * n_heads * (size.causal_pairs * (d + mixed) + tokens * d * (projected + n_kept))

    return Case(crystal_attention, arguments, flops, "BTD", True, _near_ties, decides_in_fp32=True)


@torch.no_grad()
def _near_ties(given: Mapping[str, Any], margin: float) -> Tensor:
    """``(B, H, T)``: queries that choose one of two keys for less than rounding may turn."""
    q, k = given["q"].double(), given["k"].double()
    scores = q @ k.mT
    future = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
    return closest_scores(scores.masked_fill(future, float("-inf")), given.get("top_k", 1), margin)


def _flops_of_decomposition(size: Size) -> int:
    n_heads, d = size.heads
    return 4 * n_heads * size.causal_pairs * d


CASES = {
    "crystal_attention.top1": _case("top1"),
    "crystal_attention.topk": _case("topk"),
    "crystal_attention.full": _case("full"),
    "crystal_attention.lowrank": _case("lowrank"),
    "crystal_attention.learnt": _case("lowrank", straight_through=True),
    "decompose_attention": Case(
        decompose_attention, _heads, _flops_of_decomposition, "BTD", True, _near_ties, decides_in_fp32=True
    ),
}
