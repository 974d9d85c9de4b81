"""The mixture of a Tilelli block's five pathways, for measurements and checks."""

from app.ops.case import Arguments, Case, Draw, Size
from app.ops.pathway_mix import pathway_mix

N_PATHWAYS = 5


def _arguments(size: Size, draw: Draw) -> Arguments:
    shape = (size.B, size.T)
    weights = draw.weight(*shape, N_PATHWAYS).detach().softmax(-1)
    outputs = [draw.activation(*shape, size.D) for _ in range(N_PATHWAYS)]
    return {"weights": weights.requires_grad_(), "outputs": outputs}


def _flops(size: Size) -> int:
    return 2 * N_PATHWAYS * size.B * size.T * size.D


CASES = {"pathway_mix": Case(pathway_mix, _arguments, _flops, "BTD")}
