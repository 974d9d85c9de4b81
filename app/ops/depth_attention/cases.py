"""Attention over depth as the middle block of an Equilibrium calls it, for measurements and checks."""

from app.ops.case import Arguments, Case, Draw, Size
from app.ops.depth_attention import depth_attention

N_HISTORY = 4


def _case(n_history: int) -> Case:
    def arguments(size: Size, draw: Draw) -> Arguments:
        shape = (size.B, size.T, size.D)
        history = [draw.activation(*shape) for _ in range(n_history)]
        return {
            "asked": draw.activation(*shape, std=size.D**-0.5),  # scores of order 1, as where training begins
            "z": draw.activation(*shape),
            "history": history,
        }

    def flops(size: Size) -> int:
        return 4 * n_history * size.B * size.T * size.D

    return Case(depth_attention, arguments, flops, "BTD")


CASES = {
    "depth_attention": _case(N_HISTORY),
    "depth_attention.first": _case(1),
    "depth_attention.deep": _case(12),
}
