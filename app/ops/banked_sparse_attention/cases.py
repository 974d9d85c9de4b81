"""The sparse pathway of a Tilelli block, for measurements and checks."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from app.ops.banked_sparse_attention import banked_sparse_attention
from app.ops.banks import read_bank
from app.ops.case import Arguments, Case, Draw, Size, closest_scores

WIDEST_HEAD = 32  # as in a block


def _d_head(size: Size) -> int:
    return min(WIDEST_HEAD, max(1, size.D // 2))


def _arguments(size: Size, draw: Draw) -> Arguments:
    d, std = _d_head(size), size.D**-0.5
    return {
        "h": draw.activation(size.B, size.T, size.D),
        "query": draw.weight(size.N, d, size.D, std=std),
        "key": draw.weight(size.N, d, size.D, std=std),
        "value": draw.weight(size.N, size.D, size.D, std=std),
        "bank": draw.bank(size),
        "top_k": size.top_k,
    }


def _flops(size: Size) -> int:
    tokens, d = size.B * size.T, _d_head(size)
    # Queries of the own bank, keys of all, scores of the own one, the rows that are kept, and one product of values.
    n_kept = min(size.top_k, size.T)
    return 2 * (tokens * size.D * (d + size.N * d + n_kept + size.D) + size.causal_pairs * d)


@torch.no_grad()
def _near_ties(given: Mapping[str, Any], margin: float) -> Tensor:
    """``(B, T)``: queries that keep one of two positions for less than rounding may turn."""
    h, bank = given["h"].double(), given["bank"]
    scores = torch.stack(
        [
            (h @ w_q.double().T) @ (h @ w_k.double().T).mT
            for w_q, w_k in zip(given["query"], given["key"], strict=True)
        ]
    )
    own = read_bank(scores, bank)  # (B, T, T)
    future = torch.ones_like(own[0], dtype=torch.bool).triu(1)
    return closest_scores(own.masked_fill(future, float("-inf")), given["top_k"], margin)


CASES = {
    "banked_sparse_attention": Case(
        banked_sparse_attention, _arguments, _flops, has_products=True, near_ties=_near_ties
    )
}
