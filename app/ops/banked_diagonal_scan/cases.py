"""The state pathway of a Tilelli block, for measurements and checks."""

from app.ops.banked_diagonal_scan import banked_diagonal_scan
from app.ops.case import Arguments, Case, Draw, Size


def _arguments(size: Size, draw: Draw) -> Arguments:
    gains = (size.N, size.D)
    return {
        "h": draw.activation(size.B, size.T, size.D),
        "decay": draw.weight(*gains).detach().tanh().requires_grad_(),  # both signs, short and long memories
        "input_gain": draw.weight(*gains),
        "output_gain": draw.weight(*gains),
        "bank": draw.bank(size),
    }


def _flops(size: Size) -> int:
    # The states of all banks, and the gain of each token's own.
    return size.B * size.T * size.D * (2 * size.N + 1)


CASES = {"banked_diagonal_scan": Case(banked_diagonal_scan, _arguments, _flops)}
