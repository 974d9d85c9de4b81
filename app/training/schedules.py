"""Learning-rate schedules as pure functions of the optimizer step.

Nothing is stored: a resumed run computes the rate of its step, and a changed schedule takes effect at once.
"""

import math
from typing import Literal

Schedule = Literal["cosine", "wsd", "constant", "linear"]


def rate_factor(
    schedule: Schedule,
    step: int,
    max_steps: int,
    warmup_steps: int,
    final_ratio: float,
    decay_fraction: float,
) -> float:
    """Factor on the peak learning rate for one optimizer step.

    Args:
        schedule: ``cosine`` (Loshchilov & Hutter 2017), ``linear``, ``constant``, or ``wsd``: warm-up, stable,
            then a linear decay over the last ``decay_fraction`` of the steps (Hu et al. 2024, arXiv 2404.06395).
        step: the step about to be made, counted from 0.
        max_steps: length of the run in optimizer steps.
        warmup_steps: steps of linear warm-up; step 0 already moves by ``1 / warmup_steps`` of the peak.
        final_ratio: factor reached at the end, in [0, 1]; ``constant`` ignores it.
        decay_fraction: share of the run over which ``wsd`` decays, in (0, 1].

    Returns:
        A factor in [0, 1].
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    start = warmup_steps if schedule != "wsd" else max(warmup_steps, round(max_steps * (1 - decay_fraction)))
    progress = min(1.0, max(0.0, (step - start) / max(1, max_steps - 1 - start)))
    if schedule == "cosine":
        return final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0 + (final_ratio - 1.0) * progress
