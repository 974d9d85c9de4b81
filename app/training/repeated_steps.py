"""Steps made twice: the same micro-batches from the same state, whose gradients must be equal to the bit."""

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from app.run.randomness import rekey

MAX_NAMED = 3


class _MicroBatch(NamedTuple):
    batch: Any
    batch_idx: int
    loss: Tensor


class RepeatedSteps:
    """Makes forward and backward of every n-th step once more before its update.

    A unit that errs repeatedly is found; an error that happens once, in one gradient of one step, is found if it
    falls on one of these steps: with probability 1/n. A step that is made twice runs eagerly.

    Several ranks make it again together, with all that they say to each other: each compares the gradients that came
    out of the sum over ranks.

    Args:
        every_n_steps: which steps, >= 1.
        seed: the run's, to draw the same masks.

    Attributes:
        is_under_way: whether a step is just being made again.
    """

    def __init__(self, every_n_steps: int, seed: int):
        self.every_n_steps = every_n_steps
        self.seed = seed
        self.is_under_way = False
        self._made: list[_MicroBatch] = []
        self._before: list[Tensor] = []
        self._names: list[str] = []
        self._first: Tensor | None = None
        self._differs = torch.zeros(0, dtype=torch.bool)

    def is_due(self, step: int) -> bool:
        """Whether a step, counted from 1, is made twice."""
        return step % self.every_n_steps == 0

    def begin(self, module: Any, batch_idx: int) -> None:
        """Keeps what the micro-batch about to be made may move beside the gradients."""
        if not self._is_due_now(module):
            return
        if batch_idx % module.trainer.accumulate_grad_batches == 0:
            self._made = []
            self._before = [state.detach().clone() for state in _moving(module)]

    def keep(self, module: Any, batch: Any, batch_idx: int, loss: Tensor) -> None:
        """Keeps a micro-batch that was made, and its loss."""
        if self._is_due_now(module):
            self._made.append(_MicroBatch(batch, batch_idx, loss.detach()))

    def compare(self, module: Any) -> None:
        """Makes the step again where it is due, and compares; gradients and all that moves are then the second ones."""
        if not self._is_due_now(module):
            return
        made = _left(module, [each.loss for each in self._made])
        first = {name: tensor.clone() for name, tensor in made.items()}
        self.is_under_way = True
        try:
            second = _left(module, self._again(module))
        finally:
            self.is_under_way = False
            self._made = []
        self._names = [*first, *(second.keys() - first.keys())]
        differs = torch.stack([_unequal(first.get(name), second.get(name)) for name in self._names])
        if self._first is None:
            self._first = torch.zeros((), dtype=torch.int64, device=differs.device)
        if len(self._differs) != len(differs):
            self._differs = torch.zeros_like(differs)
        step = module.trainer.global_step + 1
        is_first = (self._first == 0) & differs.any()
        self._differs.copy_(torch.where(is_first, differs, self._differs))
        self._first.copy_(torch.where(is_first, step, self._first))

    @property
    def is_broken(self) -> Tensor | None:
        """``()`` bool: whether a step did not repeat; None before the first one was made twice."""
        return None if self._first is None else self._first != 0

    def findings(self) -> tuple[int, list[str]]:
        """The first step that did not repeat, and what of it; 0 and nothing where all did."""
        step = 0 if self._first is None else int(self._first)
        if not step:
            return 0, []
        wrong = [name for name, is_other in zip(self._names, self._differs.tolist(), strict=True) if is_other]
        more = f" and {len(wrong) - MAX_NAMED} more" if len(wrong) > MAX_NAMED else ""
        return step, [f"made twice, these were not the same: {', '.join(wrong[:MAX_NAMED])}{more}"]

    def _is_due_now(self, module: Any) -> bool:
        # While a step is captured, the trainer may already have counted it.
        is_first = not self.is_under_way and not module.is_captured
        return is_first and self.is_due(module.trainer.global_step + 1)

    def _again(self, module: Any) -> list[Tensor]:
        """Forward and backward of all micro-batches, by the framework's own way; returns their losses."""
        trainer = module.trainer
        with torch.no_grad():
            for state, before in zip(_moving(module), self._before, strict=True):
                state.copy_(before)
        for parameter in module.parameters():
            parameter.grad = None
        losses, strategy = [], trainer.strategy
        for micro_step, (batch, batch_idx, _) in enumerate(self._made):
            rekey(self.seed, trainer.global_step, micro_step, trainer.global_rank)
            is_summed = trainer.world_size == 1 or micro_step == len(self._made) - 1
            # Ranks add their gradients up with the last micro-batch alone, as they did before.
            with nullcontext() if is_summed else strategy.block_backward_sync(), torch.enable_grad():
                loss = strategy.training_step(batch, batch_idx)["loss"]
                losses.append(loss.detach())
                # Not by the strategy: callbacks of a backward pass are told of the first one alone.
                trainer.precision_plugin.backward(loss / trainer.accumulate_grad_batches, module, None)
        return losses


def _left(module: Any, losses: list[Tensor]) -> dict[str, Tensor]:
    """What the micro-batches of a step leave to its update, by name."""
    left = {f"loss of micro-batch {index + 1}": loss for index, loss in enumerate(losses)}
    left |= {f"running state {index}": state.detach() for index, state in enumerate(_moving(module))}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            left[f"gradient of {name.removeprefix('network.')}"] = parameter.grad.detach()
    return left


def _moving(module: Any) -> list[Tensor]:
    """What a forward pass in training moves without a gradient."""
    return [*module.network.running_state(), *module.network.step_sums()]


def _unequal(first: Tensor | None, second: Tensor | None) -> Tensor:
    """``()`` bool on the device: whether two tensors differ in any bit, or one of them is missing."""
    if first is None or second is None:
        left = second if first is None else first
        assert left is not None
        return torch.ones((), dtype=torch.bool, device=left.device)
    return (_bits(first) != _bits(second)).any()


def _bits(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)  # a NaN equals itself, and 0 is not -0
