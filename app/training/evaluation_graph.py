"""Forward passes of an evaluation from CUDA graphs: as :mod:`app.training.step_graph` has it for steps.

An evaluation of a small network is a few dozen passes of hundreds of kernels each, which take longer to launch than to
run. The pass of a shape that comes again is captured and replayed; sums of losses are added up eagerly behind it. In
each evaluation the first batch of a captured shape is made both ways and the logits are compared bit for bit, so that
a number of Python's that has moved since the capture never counts.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from app.models import LanguageModel, LanguageModelOutput
from app.run.errors import words_of
from app.training.rank_reduction import Outside
from app.training.sharded import SupervisedFSDPStrategy
from app.training.step_graph import Captured, CudaGraph, Draws, Outputs, first_cause, same_bits

#: shapes of batches with a graph of their own; each keeps the memory of its activations
MAX_SHAPES = 4


class _Pass:
    """A forward pass that may be captured.

    Attributes:
        n_batches: of this evaluation so far.
        captured: None before.
        inputs: the memory that it reads.
    """

    def __init__(self, idx: Tensor):
        self.n_batches = 0
        self.inputs = idx.clone()
        self.captured: Captured | None = None

    def replay(self, idx: Tensor) -> LanguageModelOutput:
        assert self.captured is not None
        self.inputs.copy_(idx)
        self.captured.replay()
        output: LanguageModelOutput = self.captured.outputs["output"]
        return output


class EvaluationGraphs:
    """Makes each forward pass of evaluations eagerly or from a graph, whichever is due.

    Args:
        trainer: of the run.
        network: that is evaluated.
        is_exact: whether equal passes have equal bits on this device; else a captured one can only be close.
        capture: records a function, see :class:`~app.training.step_graph.CudaGraph`.

    Attributes:
        n_captures: passes captured so far.
        n_replays: passes made from a graph.
        n_eager: passes made eagerly.
        objection: why passes run eagerly; empty while they do not, or not yet.
    """

    def __init__(
        self,
        trainer: Trainer,
        network: LanguageModel,
        is_exact: bool = True,
        capture: Callable[[Callable[[Outside], Outputs], Sequence[nn.Parameter]], Captured] = CudaGraph,
    ):
        self.trainer = trainer
        self.network = network
        self.is_exact = is_exact
        self.capture = capture
        self.n_captures = self.n_replays = self.n_eager = 0
        self.objection = ""
        self._known: dict[Any, _Pass] = {}

    def begin(self) -> None:
        """Called when an evaluation begins."""
        if self.objection:
            return
        if isinstance(self.trainer.strategy, SupervisedFSDPStrategy):
            self._give_up("weights in shards are gathered and given back inside of the pass")
        for name, part in self.network.named_modules():
            if part._forward_hooks or part._forward_pre_hooks:
                self._give_up(f"{name or 'the network'} has a forward hook")
                break
        for known in self._known.values():
            known.n_batches = 0

    def run(self, idx: Tensor) -> LanguageModelOutput:
        """The network's output for ``idx`` ``(B, T)``; valid until the next call.

        Args:
            idx: int64, on the device.
        """
        known = None if self.objection else self._known_like(idx)
        if known is None:
            return self._eager(idx)
        known.n_batches += 1
        if known.captured is None and known.n_batches == 1:
            return self._eager(idx)  # a shape that may not come again, such as the last one's
        if known.captured is None or known.n_batches == 1:
            return self._checked(known, idx)
        self.n_replays += 1
        return known.replay(idx)

    def release(self) -> None:
        """Gives up the graphs and their memory."""
        self._known = {}

    def _eager(self, idx: Tensor) -> LanguageModelOutput:
        self.n_eager += 1
        output: LanguageModelOutput = self.network(idx)
        return output

    def _known_like(self, idx: Tensor) -> _Pass | None:
        # What lies in other memory was moved since, and a graph reads where it was.
        places = tuple(x.data_ptr() for x in (*self.network.parameters(), *self.network.buffers()))
        if any(key[0] != places for key in self._known):
            self._known = {}
        key = (places, tuple(idx.shape), self.network.training)
        if key not in self._known:
            if len(self._known) == MAX_SHAPES:
                return None
            self._known[key] = _Pass(idx)
        return self._known[key]

    def _checked(self, known: _Pass, idx: Tensor) -> LanguageModelOutput:
        """Makes a pass eagerly, and again from a graph, which is captured first where there is none."""
        draws = Draws(idx.device)
        output = self._eager(idx)
        behind = Draws(idx.device)
        draws.put_back()
        wrong = ""
        try:
            if known.captured is None:
                known.captured = self._captured(known)
                draws.put_back()
            again = known.replay(idx).logits
            if not self.is_exact:
                is_same = torch.allclose(output.logits, again, rtol=1e-2, atol=1e-2, equal_nan=True)
            else:
                is_same = same_bits(output.logits, again)
            wrong = "" if is_same else "logits of a captured pass differ from those of an eager one"
        except (RuntimeError, NotImplementedError, TypeError) as error:
            draws.renew()
            wrong = f"a pass cannot be captured: {words_of(first_cause(error))}"
        behind.put_back()
        if wrong:
            self._give_up(wrong)
        return output

    def _captured(self, known: _Pass) -> Captured:
        self.n_captures += 1
        # Weights that autocast has cast in this step lie outside of the graph, and those of the graph inside: neither
        # may be taken for the other's.
        torch.clear_autocast_cache()
        try:
            return self.capture(lambda outside: {"output": self.network(known.inputs)}, [])
        finally:
            torch.clear_autocast_cache()

    def _give_up(self, reason: str) -> None:
        self.objection = reason
        self._known = {}
        if self.trainer.is_global_zero:
            print(f"graph    evaluation off: {reason}", flush=True)
