"""The Walsh–Hadamard transform of a stack of weights, for measurements and checks."""

from app.ops.case import Arguments, Case, Draw, Size
from app.ops.hadamard import hadamard


def _arguments(size: Size, draw: Draw) -> Arguments:
    return {"x": draw.weight(size.N, 2 * size.D, size.D)}


def _flops(size: Size) -> int:
    block = size.D & -size.D
    # A sum or difference an entry and pass, and the scale.
    return 2 * size.N * size.D**2 * block.bit_length()


CASES = {"hadamard": Case(hadamard, _arguments, _flops, "DN")}
