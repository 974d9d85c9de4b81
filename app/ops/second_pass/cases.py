"""What an Equilibrium's tokens pass on their routes, for measurements and checks."""

import torch
from torch import Tensor

from app.ops.case import Arguments, Case, Draw, Size
from app.ops.second_pass import adapter_pass, second_pass

N_HISTORY = 4
#: inner width of the feed-forward network, as a multiple of D
EXPANSION = 4
#: share of tokens that take the pass
SHARE = 0.15
#: the same, and width inside, of the adapter
ADAPTER_SHARE, ADAPTER_WIDTH = 0.05, 64


def _weights(D: int, draw: Draw) -> dict[str, Tensor]:
    norms = {
        f"{norm}.{name}": (draw.weight(D, std=0.1).detach() + start).requires_grad_()
        for norm in ("ln1", "norm", "ln2")
        for name, start in (("weight", 1.0), ("bias", 0.0))
    }
    square = {name: draw.weight(D, D, std=D**-0.5) for name in ("q", "k", "v", "o", "query", "key")}
    F = EXPANSION * D
    feed_forward = {
        "up.weight": draw.weight(F, D, std=D**-0.5),
        "up.bias": draw.weight(F, std=0.1),
        "down.weight": draw.weight(D, F, std=F**-0.5),
        "down.bias": draw.weight(D, std=0.1),
    }
    return norms | square | feed_forward


def _taken(size: Size, draw: Draw, share: float) -> Tensor:
    drawn = draw.normal(size.B, size.T).float()
    # By rank, so that there are takers among few tokens too.
    return drawn >= drawn.flatten().quantile(1 - share)


def _arguments(size: Size, draw: Draw) -> Arguments:
    n_heads, d = size.heads
    D = n_heads * d
    x = draw.activation(size.B, size.T, D)
    first = {name: draw.activation(size.B, n_heads, size.T, d) for name in ("keys", "values")}
    return {
        "x": x,
        "taken": _taken(size, draw, SHARE),
        "history": [draw.activation(size.B, size.T, D) for _ in range(N_HISTORY)],
        "weights": _weights(D, draw),
        "n_heads": n_heads,
    } | first


def _alone(size: Size, draw: Draw) -> Arguments:
    given = _arguments(size, draw)
    weights = {name: weight for name, weight in given["weights"].items() if name not in ("q", "k")}
    return given | {"weights": weights, "keys": None, "values": None}


def _all(size: Size, draw: Draw) -> Arguments:
    given = _arguments(size, draw)
    return given | {"taken": torch.ones_like(given["taken"])}


def _none(size: Size, draw: Draw) -> Arguments:
    given = _arguments(size, draw)
    return given | {"taken": torch.zeros_like(given["taken"])}


def _adapter(size: Size, draw: Draw) -> Arguments:
    D, F = size.D, ADAPTER_WIDTH
    weights = {
        "down.weight": draw.weight(F, D, std=D**-0.5),
        "down.bias": draw.weight(F, std=0.1),
        "up.weight": draw.weight(D, F, std=F**-0.5),
        "up.bias": draw.weight(D, std=0.1),
    }
    x = draw.activation(size.B, size.T, D)
    return {"x": x, "taken": _taken(size, draw, ADAPTER_SHARE), "weights": weights}


def _flops(size: Size) -> int:
    products = 2 * size.D * size.D * (6 + 2 * EXPANSION) * size.B * size.T
    return round(SHARE * (products + 4 * size.causal_pairs * size.D))


def _adapter_flops(size: Size) -> int:
    return round(ADAPTER_SHARE * size.B * size.T * 4 * size.D * ADAPTER_WIDTH)


CASES = {
    "second_pass": Case(second_pass, _arguments, _flops, "BTD", has_products=True),
    "second_pass.alone": Case(second_pass, _alone, _flops, "BTD", has_products=True),
    "second_pass.all": Case(second_pass, _all, _flops, "BTD", has_products=True),
    "second_pass.none": Case(second_pass, _none, lambda size: 0, "BTD"),
    "adapter_pass": Case(adapter_pass, _adapter, _adapter_flops, "BTD", has_products=True),
}
