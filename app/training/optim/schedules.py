"""Learning-rate schedules as pure functions of the optimizer step.

A checkpoint holds the step and nothing else of them: a resumed run computes the rate of its step, and a changed
schedule takes effect at once.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

Schedule = Literal["cosine", "wsd", "constant", "linear"]
SCHEDULES: tuple[str, ...] = get_args(Schedule)
#: makes a scheduler for an optimizer; in a configuration ``{class_path: mylab.Steps, init_args: …}``
OwnSchedule = Callable[[Optimizer], LRScheduler]


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


class StepSchedule(LRScheduler):
    """Sets the rate of the step about to be made, in each parameter group times the group's own ``rate``.

    Args:
        optimizer: whose groups have a ``rate``.
        rate_of: the rate of the optimizer step with an index, counted from 0.
    """

    def __init__(self, optimizer: Optimizer, rate_of: Callable[[int], float]):
        self.rate_of = rate_of
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """The rate of each group."""
        rate = self.rate_of(self.last_epoch)
        return [rate * group["rate"] for group in self.optimizer.param_groups]

    def place(self, step: int) -> None:
        """Goes on after this many optimizer steps, with the configuration's rates in place of a checkpoint's."""
        self.last_epoch = step
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        """Completed optimizer steps."""
        return {"last_epoch": self.last_epoch}
