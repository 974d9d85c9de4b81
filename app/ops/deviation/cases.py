"""The deviation of a block's output, for measurements and checks."""

from app.ops.case import Arguments, Case, Draw, Size
from app.ops.deviation import deviation


def _arguments(size: Size, draw: Draw) -> Arguments:
    x = draw.activation(size.B, size.T, size.D, std=2.0)
    usual = {"mean": draw.weight(size.D), "variance": draw.weight(size.D).square() + 0.1}
    return {"x": x} | {name: values.detach().float() for name, values in usual.items()}


def _with_sums(size: Size, draw: Draw) -> Arguments:
    return _arguments(size, draw) | {"with_sums": True}


CASES = {
    "deviation": Case(deviation, _arguments, lambda size: 6 * size.B * size.T * size.D, "BTD"),
    "deviation.sums": Case(deviation, _with_sums, lambda size: 9 * size.B * size.T * size.D, "BTD"),
}
