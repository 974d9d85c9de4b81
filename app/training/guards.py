"""Guards against silent corruption: of what lies in memory between two updates, and of what a step computes.

Both work on the device and wait for nothing: what they find keeps the gate before the optimizer shut from that step on,
and :class:`app.training.run_callbacks.integrity.IntegrityStop` reads it where the run logs or saves.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from app.training.checksums import Checksums, Place
from app.training.repeated_steps import RepeatedSteps


class Guards:
    """What a training asks around each step.

    Args:
        is_state_checked: whether weights, moments, buffers and the tokens in memory are compared, before each update,
            with what they were after the one before. Buffers are compared before the forward pass, which moves some.
        repeated: what makes steps twice; None for nothing.
    """

    def __init__(self, is_state_checked: bool = False, repeated: RepeatedSteps | None = None):
        self.is_state_checked = is_state_checked
        self.repeated = repeated
        self._buffers = Checksums(())
        self._resting: list[Checksums] = []  # of weights and tokens; of moments, which may come later
        self._n_states = 0
        self._bad_rank: Tensor | None = None

    @property
    def is_on(self) -> bool:
        """Whether anything is guarded."""
        return self.is_state_checked or self.repeated is not None

    def makes_twice(self, step: int) -> bool:
        """Whether a step, counted from 1, has to run eagerly because it is made twice."""
        return self.repeated is not None and self.repeated.is_due(step)

    def begin(self, module: Any) -> None:
        """Takes the state of a module, as it now is, for what it has to be; before the first step of a launch."""
        if self.is_state_checked:
            self._buffers = Checksums(_buffers(module))
            self._resting = [Checksums([*_weights(module), *_tokens(module)])]
            self._n_states = 0
            self.after_update(module)

    def begin_after_validation(self) -> None:
        """The buffers may have moved meanwhile, where a network adapts to what it reads."""
        self._buffers.note()

    def before_forward(self, module: Any, batch_idx: int) -> None:
        """Called before each micro-batch is made."""
        is_again = self.repeated is not None and self.repeated.is_under_way
        is_checked = self.is_state_checked and not is_again
        if is_checked and batch_idx % module.trainer.accumulate_grad_batches == 0:
            self._buffers.compare(_step(module))
        if self.repeated is not None:
            self.repeated.begin(module, batch_idx)

    def after_forward(self, module: Any, batch: Any, batch_idx: int, loss: Tensor) -> None:
        """Called with each micro-batch that was made."""
        if self.repeated is not None:
            self.repeated.keep(module, batch, batch_idx, loss)

    def before_update(self, module: Any) -> Tensor | None:
        """Called once all gradients of a step are there.

        Returns:
            ``()`` bool, the same on all ranks: whether no update may be made, now or later; None where nothing guards.
        """
        for sums in self._resting:
            sums.compare(_step(module))
        if self.repeated is not None:
            self.repeated.compare(module)
        return self._agreed(module)

    def after_update(self, module: Any) -> None:
        """Called once a step has moved all that it moves."""
        if not self.is_state_checked:
            return
        states = list(module.trainer.optimizers[0].state.items())
        if len(states) != self._n_states:  # some optimizers make them in the first step
            self._resting.append(Checksums(_moments(module, states[self._n_states :])))
            self._n_states = len(states)
        for sums in (self._buffers, *self._resting):
            sums.note()

    def check(self, module: Any, weights_too: bool) -> None:
        """Compares the state between two steps.

        Args:
            module: of the run.
            weights_too: whether the trained weights are in it.
        """
        for sums in (self._buffers, *(self._resting if weights_too else ())):
            sums.compare(module.trainer.global_step + 1)
        self._agreed(module)

    def tensors(self) -> list[Tensor]:
        """What a step moves in here, beside what makes steps twice."""
        own = [] if self._bad_rank is None else [self._bad_rank]
        return own + [tensor for sums in (self._buffers, *self._resting) for tensor in sums.tensors()]

    def findings(self) -> tuple[int, list[str]]:
        """The first step at which something was wrong, and what; 0 and nothing where all is well.

        Of what another rank has found the step is 0. Waits for the device.
        """
        bad_rank = 0 if self._bad_rank is None else int(self._bad_rank)
        if not bad_rank:
            return 0, []
        parts: list[Checksums | RepeatedSteps] = [*self._resting, self._buffers]
        parts += [] if self.repeated is None else [self.repeated]
        own = [(step, what) for step, what in (part.findings() for part in parts) if step]
        if not own:
            return 0, [f"rank {bad_rank - 1} has found a difference"]
        return min(step for step, _ in own), [words for _, what in own for words in what]

    def _agreed(self, module: Any) -> Tensor | None:
        flags = [sums.is_broken for sums in (self._buffers, *self._resting)] if self.is_state_checked else []
        if self.repeated is not None and self.repeated.is_broken is not None:
            flags.append(self.repeated.is_broken)
        if not flags:
            return None
        if self._bad_rank is None:
            self._bad_rank = torch.zeros((), dtype=torch.int64, device=module.device)
        trainer = module.trainer
        self._bad_rank.copy_(torch.stack(flags).any() * (trainer.global_rank + 1))
        if trainer.world_size > 1:
            torch.distributed.all_reduce(self._bad_rank, op=torch.distributed.ReduceOp.MAX)
        return self._bad_rank != 0


def _places(module: Any, kind: str, owners: str) -> Iterator[Place]:
    """The tensors of a module's parts, each once."""
    seen = set()
    for prefix, part in module.network.named_modules():
        owner = getattr(part, owners)
        for key, tensor in owner.items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield Place(kind, f"{prefix}.{key}" if prefix else key, owner, key)


def _weights(module: Any) -> Iterator[Place]:
    return _places(module, "weights", "_parameters")


def _buffers(module: Any) -> Iterator[Place]:
    return _places(module, "buffers", "_buffers")


def _moments(module: Any, states: Iterable[tuple[Any, dict[Any, Any]]]) -> Iterator[Place]:
    names = {parameter: name for name, parameter in module.network.named_parameters()}
    for parameter, state in states:
        for key, value in state.items():
            # A step's number may be on the host.
            if isinstance(value, Tensor) and value.device == module.device:
                yield Place("moments", f"{names.get(parameter, '?')} ({key})", state, key)


def _tokens(module: Any) -> Iterator[Place]:
    data = module.trainer.datamodule
    resident = data.tokens_in_memory() if hasattr(data, "tokens_in_memory") else {}
    for split, tokens in resident.items():
        if tokens.device == module.device:
            yield Place("tokens", split, resident, split)


def _step(module: Any) -> int | Tensor:
    """Number of the step under way; a captured one finds it where its kernels do."""
    found: int | Tensor = module.numbers.step if module.is_captured else module.trainer.global_step + 1
    return found
