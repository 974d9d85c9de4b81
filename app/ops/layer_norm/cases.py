"""The norm of a block's input, for measurements and checks."""

import torch

from app.ops.case import Arguments, Case, Draw, Size
from app.ops.layer_norm import layer_norm


def _arguments(size: Size, draw: Draw) -> Arguments:
    x = (
        draw.weight(size.B, size.T, size.D, std=2.0).detach() + 0.5
    )  # the residual stream is fp32 under autocast too
    with torch.no_grad():
        if size.T > 1:
            x[:, size.T // 2] = 0.0  # of this token nothing is left
    gain, bias = draw.weight(size.D), draw.weight(size.D)
    return {"x": x.requires_grad_(), "weight": gain, "bias": bias, "eps": 1e-5}


def _flops(size: Size) -> int:
    return 8 * size.B * size.T * size.D


CASES = {"layer_norm": Case(layer_norm, _arguments, _flops, "BTD")}
