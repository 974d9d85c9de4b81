"""The two convolutions of a Tilelli block, for measurements and checks."""

from app.ops.banked_causal_conv import banked_causal_conv
from app.ops.case import Arguments, Case, Draw, Size

TAPS = {"local": 5, "wide": 21}


def _case(n_taps: int) -> Case:
    def arguments(size: Size, draw: Draw) -> Arguments:
        return {
            "h": draw.activation(size.B, size.T, size.D),
            "weight": draw.weight(size.N, size.D, n_taps, std=n_taps**-0.5),
            "bank": draw.bank(size),
        }

    def flops(size: Size) -> int:
        return 2 * size.B * size.T * size.D * n_taps

    return Case(banked_causal_conv, arguments, flops)


CASES = {f"banked_causal_conv.{name}": _case(n_taps) for name, n_taps in TAPS.items()}
