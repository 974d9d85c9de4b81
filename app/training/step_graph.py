"""An optimizer step as one CUDA graph: its kernels are recorded once and launched together from then on.

A step of a small network is hundreds or thousands of kernels, and launching them one by one takes longer than they run.
A graph replays all of them, from the forward pass over gate and clipping to the optimizer, with one launch. It has the
bits of the step that was recorded, so that captured and eager steps may follow one another in any order, and a resumed
run need not know which was which.

What a replay does not repeat is Python: hooks inside the step, and numbers that Python holds. So

- a run that has a hook there, or that waits for the host inside of a step, goes eagerly: see :func:`objection`;
- rates and the step's number are tensors (:class:`~app.training.optim.step_numbers.StepNumbers`), and so is all that a
  step moves;
- another number of the optimizer's, another shape, a frozen parameter or one in new memory is captured anew;
- before a captured step counts, it is made beside the eager one from the same state, twice, and every tensor compared.

With accumulation a step is up to three graphs: its first micro-batch, those in between, and the last with the update.
With several ranks the last one is two, and between them the ranks add up, see :mod:`app.training.rank_reduction`. What
one of them cannot capture none does.
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from app.run.errors import words_of
from app.training.distributed import SupervisedDDPStrategy
from app.training.language_model import LanguageModelModule
from app.training.optim.optimizers import OPTIMIZERS
from app.training.rank_reduction import Outside, RankReduction, at_once

#: eager steps before the first capture: they make the optimizer's state and open the libraries
WARM_UP_STEPS = 2
#: times that a captured micro-batch is held against the eager one
N_CHECKS = 2
#: shapes of batches with a graph of their own; each keeps the memory of its activations
MAX_SHAPES = 4
CALLBACK_HOOKS = (
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)
MODULE_HOOKS = (
    *CALLBACK_HOOKS,
    "training_step",
    "backward",
    "optimizer_zero_grad",
    "optimizer_step",
    "configure_gradient_clipping",
)

Outputs = dict[str, Any]
#: makes a micro-batch by Lightning's own loop: with its counters, or without
Compute = Callable[[Any], Outputs]


class Captured(Protocol):
    """A micro-batch that can be made again, on what its inputs' memory then holds."""

    outputs: Outputs

    def replay(self) -> None:
        """Makes it; ``outputs`` and gradients are then those of this time, in the same memory as ever."""


class Loop(Protocol):
    """What the loop around a step has to offer."""

    def uncounted(self) -> AbstractContextManager[None]:
        """For the time of a ``with`` block, micro-batches leave no trace in the loop's counters."""

    def count(self, is_first: bool, is_last: bool) -> None:
        """Counts a micro-batch that the loop has not made itself."""


def objection(trainer: Trainer, module: LanguageModelModule) -> str:
    """Why the steps of this run cannot be captured, in words; empty where nothing speaks against it."""
    if trainer.world_size > 1 and not isinstance(trainer.strategy, SupervisedDDPStrategy):
        return "weights in shards are gathered and given back inside of the step"
    if trainer.world_size > 1 and module.guards.is_on:
        return "guards ask the other ranks inside of the step"
    if module.optimizer_name not in OPTIMIZERS:
        return f"{module.optimizer_name} is asked on the host before each step"
    if torch.is_anomaly_enabled():
        return "trainer.detect_anomaly waits for every operation"
    if trainer.precision_plugin.precision == "16-mixed":
        return "the loss scale of 16-mixed is read on the host"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for hook in CALLBACK_HOOKS:
            if getattr(type(callback), hook) is not getattr(Callback, hook):
                return f"{type(callback).__name__} looks into the step ({hook})"
    for hook in MODULE_HOOKS:
        if getattr(type(module), hook) is not getattr(LanguageModelModule, hook):
            return f"{type(module).__name__} has a {hook} of its own"
    return ""


class CudaGraph:
    """The kernels of a function, in CUDA graphs: one, and one more for each time that it leaves the capture.

    Args:
        compute: what to record; no kernel of it runs. What it gives to the function that it is given does not belong
            to a graph, and is called in its place between two of them.
        parameters: whose gradients it makes or adds to.
    """

    def __init__(self, compute: Callable[[Outside], Outputs], parameters: Sequence[nn.Parameter]):
        self._parts: list[Callable[[], None]] = []
        self._pool = torch.cuda.graph_pool_handle()
        torch.cuda.synchronize()
        gc.collect()
        torch.cuda.empty_cache()
        with torch.cuda.stream(torch.cuda.Stream()):
            self._begin()
            try:
                self.outputs = compute(self._outside)
            finally:
                self._end()
        self._gradients = [(parameter, parameter.grad) for parameter in parameters]

    def _begin(self) -> None:
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may allocate page-locked memory meanwhile.
        self._graph.capture_begin(self._pool, capture_error_mode="thread_local")

    def _end(self) -> None:
        self._graph.capture_end()
        self._parts.append(self._graph.replay)

    def _outside(self, function: Callable[[], None]) -> None:
        self._end()
        self._parts.append(function)
        self._begin()

    def replay(self) -> None:
        """Launches them."""
        for part in self._parts:
            part()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient


class _MicroBatch:
    """A micro-batch that is captured or going to be, and the memory that it reads its batch from.

    Args:
        batch: one like it.
        is_first: of its optimizer step.
        is_last: of its optimizer step, which then makes the update.
    """

    def __init__(self, batch: Sequence[Tensor], is_first: bool, is_last: bool):
        self.inputs = [tensor.clone() for tensor in batch]
        self.is_first, self.is_last = is_first, is_last
        self.captured: Captured | None = None
        self.n_checks = 0

    def replay(self, batch: Sequence[Tensor]) -> Outputs:
        assert self.captured is not None
        for memory, tensor in zip(self.inputs, batch, strict=True):
            memory.copy_(tensor)
        self.captured.replay()
        return self.captured.outputs


class StepGraphs:
    """Makes each micro-batch of a run eagerly or from a graph, whichever is due.

    Args:
        trainer: of the run.
        module: that it trains.
        loop: that makes and counts micro-batches.
        is_exact: whether equal steps have equal bits on this device; else a captured step can only be close.
        capture: records a function, see :class:`CudaGraph`.

    Attributes:
        n_captures: micro-batches captured so far; a number that grows after the first steps costs time.
        n_replays: micro-batches made from a graph.
        n_eager: micro-batches made eagerly.
        objection: why steps run eagerly; empty while they do not, or not yet.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LanguageModelModule,
        loop: Loop,
        is_exact: bool = True,
        capture: Callable[[Callable[[Outside], Outputs], Sequence[nn.Parameter]], Captured] = CudaGraph,
    ):
        self.trainer = trainer
        self.module = module
        self.loop = loop
        self.is_exact = is_exact
        self.capture = capture
        self.n_captures = self.n_replays = self.n_eager = 0
        self.objection = ""
        self._first_step = trainer.global_step
        self._parameters = list(module.parameters())
        self._known: dict[tuple[Any, Any, Any], _MicroBatch] = {}
        self._told: set[str] = set()
        if reason := objection(trainer, module):
            self._give_up(reason)
        elif isinstance(trainer.strategy, SupervisedDDPStrategy) and trainer.world_size > 1:
            # From the first step on, and in eager ones too: all of a run's steps then have the same bits.
            trainer.strategy.leave_gradients()
            module.reduction = RankReduction(self._parameters, trainer.world_size)

    def run(self, batch: Any, batch_idx: int, compute: Compute) -> Outputs:
        """Makes a micro-batch.

        Args:
            batch: as the data module gives it.
            batch_idx: its index in this launch.
            compute: makes it eagerly.
        """
        is_eager = self.objection or self.module.guards.makes_twice(self.trainer.global_step + 1)
        known = None if is_eager else self._known_like(batch, batch_idx)
        if known is None:
            self.n_eager += 1
            return compute(batch)
        if known.n_checks < N_CHECKS:
            return self._checked(known, batch, compute)
        outputs = self._replayed(known, batch, self.trainer.global_step + 1)
        record = self.module.step_record(outputs["record"].output, batch[0].numel(), batch_idx)
        self.loop.count(known.is_first, known.is_last)
        return {"loss": outputs["loss"], "record": record}

    def release(self) -> None:
        """Gives up the graphs and their memory."""
        self._known = {}

    def _known_like(self, batch: Any, batch_idx: int) -> _MicroBatch | None:
        """What is captured, or to be captured, for a micro-batch like this; None where it has to run eagerly."""
        if self.trainer.global_step - self._first_step < WARM_UP_STEPS:
            return None
        if not isinstance(batch, list | tuple) or not all(isinstance(tensor, Tensor) for tensor in batch):
            self._give_up(f"a batch is not a sequence of tensors ({type(batch).__name__})")
            return None
        n_micro = self.trainer.accumulate_grad_batches
        kind = (batch_idx % n_micro == 0, (batch_idx + 1) % n_micro == 0)
        shape, numbers = tuple((tensor.shape, tensor.dtype) for tensor in batch), self._numbers()
        key = (kind, shape, numbers)
        if key not in self._known:
            if len({known[1] for known in self._known} | {shape}) > MAX_SHAPES:
                self._tell(f"batches of more than {MAX_SHAPES} shapes: the others run eagerly")
                return None
            # What was captured with other numbers is of no use any more, and holds memory.
            self._known = {known: entry for known, entry in self._known.items() if known[2] == numbers}
            self._known[key] = _MicroBatch(batch, *kind)
        return self._known[key]

    def _numbers(self) -> tuple[Any, ...]:
        """What a captured step has in it beside tensors' values, and what somebody may change between steps."""
        module, groups = self.module, self.trainer.optimizers[0].param_groups
        described = [x for group in groups for name, x in group.items() if name not in ("params", "lr")]
        places = [(p.data_ptr(), p.requires_grad) for p in self._parameters]
        return (module.gradient_clip, module.nonfinite, module.network.training, *described, *places)

    def _replayed(self, known: _MicroBatch, batch: Sequence[Tensor], step: int) -> Outputs:
        self.module.take_step_numbers(self.trainer.optimizers[0], step)
        outputs = known.replay(batch)
        if known.is_last and not self.module.network.can_capture_after_step:
            self.module.after_optimizer_step(step)
        self.n_replays += 1
        return outputs

    def _give_up(self, reason: str) -> None:
        """From now on every step runs eagerly."""
        self.objection = reason
        self._known = {}
        self._tell(f"off: {reason}")

    def _tell(self, words: str) -> None:
        if self.trainer.is_global_zero and words not in self._told:
            print(f"graph    {words}", flush=True)
        self._told.add(words)

    # -- comparing --------------------------------------------------------------------------------------

    def _checked(self, known: _MicroBatch, batch: Sequence[Tensor], compute: Compute) -> Outputs:
        """Makes a micro-batch eagerly, and again from a graph, which is captured first where there is none."""
        began, step = time.perf_counter(), self.trainer.global_step + 1
        draws, before = Draws(self.module.device), self._state()
        outputs = compute(batch)
        self.n_eager += 1
        eager = self._state() | _losses(outputs)
        self._put_back(before)
        draws.put_back()

        def capture() -> str:
            known.captured = known.captured or self._capture(known, compute)
            draws.put_back()
            return ""

        def again() -> str:
            losses = _losses(self._replayed(known, batch, step))
            return self._difference(eager, self._state() | losses)

        # A rank that cannot capture must not leave the others waiting for what it would exchange in a replay.
        wrong = self._agreed(_attempt(capture, draws)) or self._agreed(_attempt(again, draws))
        if wrong:
            self._put_back(eager)
            self._give_up(wrong)
            return outputs
        known.n_checks += 1
        if known.is_last and known.n_checks == N_CHECKS:
            how = "equal to eager ones, bit for bit" if self.is_exact else "close to eager ones"
            self._tell(f"steps are replayed from here on, {how} ({time.perf_counter() - began:.1f} s)")
        return outputs

    def _agreed(self, wrong: str) -> str:
        """What is wrong on this rank, or on another one; empty where all is well on all of them."""
        if self.trainer.world_size == 1:
            return wrong
        is_wrong = torch.tensor(int(bool(wrong)), device=self.module.device)
        torch.distributed.all_reduce(is_wrong, op=torch.distributed.ReduceOp.MAX)
        return wrong or ("it could not be captured on another rank" if is_wrong.item() else "")

    def _capture(self, known: _MicroBatch, compute: Compute) -> Captured:
        def captured(outside: Outside) -> Outputs:
            self.module.is_captured, self.module.outside = True, outside
            try:
                with self.loop.uncounted():
                    return compute(type(known.inputs)(known.inputs))
            finally:
                self.module.is_captured, self.module.outside = False, at_once

        self.n_captures += 1
        return self.capture(captured, [p for p in self._parameters if p.requires_grad])

    def _live(self) -> Iterator[tuple[str, Tensor]]:
        """Everything that a step reads of the one before and leaves to the next, gradients apart."""
        module = self.module
        yield from module.named_parameters()
        yield from module.named_buffers()
        for index, state in enumerate(self.trainer.optimizers[0].state.values()):
            yield from (
                (f"optimizer.{index}.{name}", x) for name, x in state.items() if isinstance(x, Tensor)
            )
        own = {
            "gate": module.gate.tensors(),
            "guards": module.guards.tensors(),
            "gradient norm": [] if module.gradient_norm is None else [module.gradient_norm],
            "running state": module.network.running_state(),
            "sum": module.network.step_sums(),
        }
        for name, tensors in own.items():
            yield from ((f"{name} {index}", tensor) for index, tensor in enumerate(tensors))

    def _state(self) -> dict[str, Tensor]:
        state = {name: tensor.detach().clone() for name, tensor in self._live()}
        gradients = ((name, p.grad) for name, p in self.module.named_parameters())
        return state | {
            f"{name}'s gradient": grad.detach().clone() for name, grad in gradients if grad is not None
        }

    @torch.no_grad()
    def _put_back(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self._live():
            tensor.copy_(state[name])
        for name, parameter in self.module.named_parameters():
            gradient = state.get(f"{name}'s gradient")
            if gradient is None:
                parameter.grad = None
            elif parameter.grad is None:
                parameter.grad = gradient.clone()
            else:
                parameter.grad.copy_(gradient)

    def _difference(self, eager: Mapping[str, Tensor], captured: Mapping[str, Tensor]) -> str:
        """What is not the same after an eager step and a captured one, in words; empty if all is."""
        if not self.is_exact:
            far = [x for x in LOSSES if not torch.allclose(eager[x], captured[x], rtol=1e-2, equal_nan=True)]
            return f"its {far[0]} is far from the eager step's" if far else ""
        for name, tensor in eager.items():
            if name not in captured or not same_bits(tensor, captured[name]):
                return f"{name} differs after a captured step from what it is after an eager one"
        return ""


def _attempt(function: Callable[[], str], draws: "Draws") -> str:
    """What a function finds wrong, or why it cannot be done."""
    try:
        return function()
    except (RuntimeError, NotImplementedError, TypeError) as error:
        draws.renew()
        return f"the step cannot be captured: {words_of(first_cause(error))}"


LOSSES = ("loss", "auxiliary loss")


def _losses(outputs: Outputs) -> dict[str, Tensor]:
    return dict(
        zip(LOSSES, (outputs["loss"].clone(), outputs["record"].output.aux_loss.clone()), strict=True)
    )


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape and format have the same bits."""
    return torch.equal(_bytes(one), _bytes(other))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)  # a NaN equals itself, and 0 is not -0


def first_cause(error: BaseException) -> BaseException:
    """What went wrong first; a capture that is broken off raises once more at its end."""
    while error.__context__ is not None:
        error = error.__context__
    return error


class Draws:
    """The state of the generators that a step draws from."""

    def __init__(self, device: torch.device):
        self._host = torch.default_generator.get_state()
        self._generator = torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else None
        self._state = None if self._generator is None else self._generator.get_state()

    def put_back(self) -> None:
        """Draws from here on are those from there on."""
        torch.default_generator.set_state(self._host)
        if self._generator is not None and self._state is not None:
            self._generator.set_state(self._state)

    def renew(self) -> None:
        """Also after a capture that broke off: the generator takes itself to be a part of it from then on."""
        if self._generator is not None:
            self._generator.graphsafe_set_state(torch.Generator(self._generator.device).graphsafe_get_state())
        self.put_back()
