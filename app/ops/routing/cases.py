"""Routes by thresholds, for measurements and checks."""

from collections.abc import Callable

import torch

from app.ops.case import Arguments, Case, Draw, Size
from app.ops.routing import routing

# Apart, and closer than the least distance: then one pushes the next.
APART, CLOSE = (0.126, 0.842, 1.645), (0.5, 0.5002, 0.4)


def _given(base: tuple[float, float, float], is_ordinal: bool) -> Callable[[Size, Draw], Arguments]:
    def arguments(size: Size, draw: Draw) -> Arguments:
        # Statistics are kept in fp32 whatever the blocks put out. Far from all centres gradients cancel out.
        middle, spread = (0.0, 1.0) if base == APART else (base[0], 1e-3)
        score = middle + draw.normal(size.B, size.T).float() * spread
        return {
            "score": score.requires_grad_(),
            "base": torch.tensor(base, device=draw.device),
            "offsets": draw.weight(3, std=0.5),
            "offset_scale": 0.2 if base == APART else 1e-4,
            "temperature": 8.0,
            "is_ordinal": is_ordinal,
        }

    return arguments


def _flops(size: Size) -> int:
    return 20 * size.B * size.T


CASES = {
    "routing": Case(routing, _given(APART, True), _flops, "BT"),
    "routing.centres": Case(routing, _given(APART, False), _flops, "BT"),
    "routing.pushed": Case(routing, _given(CLOSE, True), _flops, "BT"),
    "routing.centres_pushed": Case(routing, _given(CLOSE, False), _flops, "BT"),
}
