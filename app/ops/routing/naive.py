"""Reference form of the routes by thresholds.

Shape suffixes: B batch, T sequence.
"""

import torch
from torch import Tensor

#: least distance of two thresholds
MINIMUM_GAP = 1e-3


def routing(
    score: Tensor, base: Tensor, offsets: Tensor, offset_scale: float, temperature: float, is_ordinal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The route of each token, and a soft form of the same decision.

    Args:
        score: ``(B, T)``, fp32 at least, as the following.
        base: ``(3)``, thresholds without offsets; no gradient goes there.
        offsets: ``(3)``, learned.
        offset_scale: how far they may shift a threshold.
        temperature: sharpness of the soft form.
        is_ordinal: it is differences of sigmoids at the thresholds; otherwise a softmax over the distances to the
            middle of each interval.

    Returns:
        ``(B, T)`` int64, the number of thresholds below the score; ``(B, T, 4)`` probabilities; ``(3)`` thresholds,
        ascending.
    """
    thresholds = shifted(base, offsets, offset_scale)
    distance = score.unsqueeze(-1)
    route = (distance.detach() > thresholds.detach()).sum(-1)
    if is_ordinal:
        above = torch.sigmoid(temperature * (distance - thresholds))  # (B, T, 3)
        ends = torch.ones_like(distance)
        probabilities = torch.cat([ends, above], -1) - torch.cat([above, torch.zeros_like(ends)], -1)
    else:
        t1, t2, t3 = thresholds.unbind()
        left, right = (t2 - t1).clamp(min=MINIMUM_GAP), (t3 - t2).clamp(min=MINIMUM_GAP)
        centres = torch.stack([t1 - left, (t1 + t2) / 2, (t2 + t3) / 2, t3 + right])
        probabilities = torch.softmax(-temperature * (distance - centres).abs(), -1)
    return route, probabilities, thresholds


def shifted(base: Tensor, offsets: Tensor, offset_scale: float) -> Tensor:
    """The thresholds ``(3)``: moved by their offsets, and kept apart."""
    t1, t2, t3 = (base + offset_scale * offsets.tanh()).unbind()
    t2 = torch.maximum(t2, t1 + MINIMUM_GAP)
    t3 = torch.maximum(t3, t2 + MINIMUM_GAP)
    return torch.stack([t1, t2, t3])
