"""The dense pathway of a Tilelli block, for measurements and checks."""

from app.ops.banked_ffn import banked_ffn
from app.ops.case import Arguments, Case, Draw, Size

EXPAND = 2  # hidden width over D, as in a block


def _arguments(size: Size, draw: Draw) -> Arguments:
    hidden = EXPAND * size.D
    return {
        "h": draw.activation(size.B, size.T, size.D),
        "up": draw.weight(size.N, hidden, size.D, std=size.D**-0.5),
        "down": draw.weight(size.N, size.D, hidden, std=hidden**-0.5),
        "bank": draw.bank(size),
    }


def _flops(size: Size) -> int:
    return 4 * size.B * size.T * size.D * EXPAND * size.D


CASES = {"banked_ffn": Case(banked_ffn, _arguments, _flops, has_products=True)}
