"""The one exchange of a logged step: what all watchers of a trainer chose, over the ranks and to the host."""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from app.records import Measure, StepRecord

if TYPE_CHECKING:
    from callbacks.watcher import MeasureWatcher


class Chosen:
    """What one watcher chose, combined over the micro-batches of a step, and then over the ranks."""

    def __init__(self) -> None:
        self._measures: Mapping[str, Measure] = {}  # the newest micro-batch's
        self._sums: dict[str, Tensor] = {}  # over the micro-batches of the step so far
        self._host: Iterable[Tensor] = ()
        self._n_parts = 1

    def __bool__(self) -> bool:
        return bool(self._measures)

    def add(self, measures: Mapping[str, Measure], device: torch.device, is_first: bool) -> None:
        """Takes in a micro-batch; the first one of a step begins anew."""
        if is_first:
            self.forget()
        self._measures = measures
        for name, measure in measures.items():
            values = _wide(measure.values, device)
            if measure.reduce != "none" and name in self._sums:
                values = self._sums[name] + values
            self._sums[name] = values

    def of_ranks(self) -> list[Tensor]:
        """What is added up over the ranks."""
        return [self._sums[name] for name, m in self._measures.items() if m.reduce != "none"]

    def alike(self) -> list[Tensor]:
        """What is the same on every rank: the other values, and targets."""
        values = [self._sums[name] for name, m in self._measures.items() if m.reduce == "none"]
        device = next(iter(self._sums.values())).device if self._sums else torch.device("cpu")
        return values + [_wide(m.target, device) for m in self._measures.values() if m.target is not None]

    def exchanged(self, of_ranks: Iterable[Tensor], alike: Iterable[Tensor], n_parts: int) -> None:
        """Takes the same tensors back, on the host; ``n_parts`` micro-batches, those of all ranks, are in them."""
        self._host, self._n_parts, self._sums = [*of_ranks, *alike], n_parts, {}

    def forget(self) -> None:
        """Lets go of everything; measures may hold on to activations."""
        self._measures, self._sums, self._host = {}, {}, ()

    def take(self) -> dict[str, Measure]:
        """The measures of the step, which are then forgotten."""
        measures, host = self._measures, iter(self._host)
        self.forget()
        values = {name: next(host) for name, m in measures.items() if m.reduce != "none"}
        values |= {name: next(host) for name, m in measures.items() if m.reduce == "none"}
        found = {}
        for name, measure in measures.items():
            mean = values[name] / self._n_parts if measure.reduce == "mean" else values[name]
            target = None if measure.target is None else next(host)
            derived = mean if measure.derive is None else measure.derive(mean).double()
            found[name] = replace(measure, values=derived, target=target, in_force=None, derive=None)
        return found


class SharedGather:
    """Takes what all watchers of a trainer chose to the host together: one reduction over ranks, one transfer.

    Args:
        watchers: in the order of the trainer, the same on every rank.

    Attributes:
        agree: is given the watchers, and of each how many numbers this rank has of it for the other ranks; returns
            those that take part, the same on every rank. In a run of the application those on which it has failed on no
            rank, see :mod:`app.training.run_callbacks.watching`; in any other trainer all.
    """

    def __init__(self, watchers: "Sequence[MeasureWatcher]"):
        self.watchers = watchers
        self.agree: Callable[[Sequence[Any], Sequence[int]], Sequence[Any]] = lambda watchers, _: watchers
        self._newest: Callable[[], StepRecord | None] = lambda: None

    def take_in(self, pl_module: Any, record: StepRecord) -> None:
        """Lets every watcher choose from a micro-batch, once, whoever asks; after the last one, exchanges."""
        if not record.is_logged or self._newest() is record:
            return
        self._newest = weakref.ref(record)
        for watcher in self.watchers:
            watcher.take_in(pl_module, record)
        if record.is_last_micro:
            self._exchange(record.micro_step + 1)

    def _exchange(self, n_micro: int) -> None:
        n_ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        counts = [sum(x.numel() for x in watcher.chosen.of_ranks()) for watcher in self.watchers]
        taking_part = self.agree(self.watchers, counts)
        for watcher in self.watchers:
            if watcher not in taking_part:
                watcher.chosen.forget()
        of_ranks = [watcher.chosen.of_ranks() for watcher in taking_part]
        alike = [watcher.chosen.alike() for watcher in taking_part]
        summed = [x.reshape(-1) for tensors in of_ranks for x in tensors]
        if n_ranks > 1 and summed:
            summed = [torch.cat(summed)]
            dist.all_reduce(summed[0])
        everything = summed + [x.reshape(-1) for tensors in alike for x in tensors]
        if not everything:
            return
        shapes = [x.shape for tensors in of_ranks + alike for x in tensors]
        flat = torch.cat(everything).cpu().double().split([shape.numel() for shape in shapes])
        host = iter([x.reshape(shape) for x, shape in zip(flat, shapes, strict=True)])
        summed_on_host = [[next(host) for _ in tensors] for tensors in of_ranks]
        for watcher, theirs, tensors in zip(taking_part, summed_on_host, alike, strict=True):
            watcher.chosen.exchanged(theirs, [next(host) for _ in tensors], n_micro * n_ranks)


def _wide(values: Tensor, device: torch.device) -> Tensor:
    """Detached, in the widest floating type of the device: a count in fp32 is exact only up to 2^24."""
    return values.detach().to(device, torch.float32 if device.type == "mps" else torch.float64)
