"""What changes from step to step in an optimizer's arguments, where a captured step can read it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer


class StepNumbers:
    """Number of the step about to be made, and the rate of each parameter group.

    On a GPU both are tensors there: kernels that have been captured once read their arguments' memory again at every
    replay, but never a number of Python's. A step that is not captured uses the same tensors, because a rate in single
    precision moves weights by other bits than one in double. Elsewhere both are plain numbers.

    Attributes:
        step: counted from 1.
    """

    step: int | Tensor = 0

    def __init__(self) -> None:
        self._rates: list[Tensor] = []

    def set(self, step: int, optimizer: Optimizer) -> None:
        """Takes the numbers of the next step; to be called outside of any capture.

        Args:
            step: counted from 1.
            optimizer: its groups' ``lr`` are plain numbers, which whoever sets or logs a rate can rely on.
        """
        device = optimizer.param_groups[0]["params"][0].device
        if device.type != "cuda":
            self.step = step
            return
        if not isinstance(self.step, Tensor):
            self.step = torch.zeros((), dtype=torch.int64, device=device)
            self._rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self.step.fill_(step)
        for rate, group in zip(self._rates, optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])

    @contextmanager
    def used_by(self, optimizer: Optimizer, is_captured: bool) -> Iterator[None]:
        """For the time of a ``with`` block, the optimizer's rates are the tensors, where there are some.

        Args:
            optimizer: whose groups are as before afterwards.
            is_captured: whether what happens inside is captured.
        """
        if not self._rates:
            yield
            return
        before = [dict(group) for group in optimizer.param_groups]
        try:
            for tensor, group in zip(self._rates, optimizer.param_groups, strict=True):
                group["lr"] = tensor
                if "capturable" in group:
                    # PyTorch asks for it; in a fused step it means nothing more.
                    group["capturable"] = is_captured
            yield
        finally:
            for old, group in zip(before, optimizer.param_groups, strict=True):
                group.update(old)
