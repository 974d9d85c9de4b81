"""The ternary quantisers on a stack of weights, for measurements and checks."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from app.ops.case import Arguments, Case, Draw, Size
from app.ops.ternary import learned_step_ternary, ternary


def _with_scale_over(*dim: int) -> Callable[[Size, Draw], Arguments]:
    return lambda size, draw: {"weight": draw.weight(size.N, 2 * size.D, size.D), "dim": dim}


def _with_step(size: Size, draw: Draw) -> Arguments:
    weight = draw.weight(size.N, 2 * size.D, size.D)
    step = 2 * weight.detach().abs().mean((1, 2), keepdim=True)  # where training begins
    return {"weight": weight, "step": step.requires_grad_()}


def _flops(size: Size) -> int:
    # Magnitude and its sum, quotient, rounding, product.
    return 5 * size.N * 2 * size.D**2


@torch.no_grad()
def _near_ties(given: Mapping[str, Any], margin: float) -> Tensor:
    """In the shape of the weight: entries that lie between two trits, or on the edge of what is clipped."""
    weight = given["weight"].double()
    scale = given["step"].double() if "step" in given else weight.abs().mean(given["dim"], keepdim=True)
    ratio = (weight / scale).abs()
    return ((ratio - 0.5).abs() <= margin) | ((ratio - 1).abs() <= margin)


def _case(function: Callable[..., Tensor], arguments: Callable[[Size, Draw], Arguments]) -> Case:
    return Case(function, arguments, _flops, "DN", near_ties=_near_ties, decides_in_fp32=True)


CASES = {
    "ternary": _case(ternary, _with_scale_over(1, 2)),
    "ternary.per_row": _case(ternary, _with_scale_over(-1)),
    "learned_step_ternary": _case(learned_step_ternary, _with_step),
}
