"""Windows of a synthetic task: an endless stream of them for training, a fixed set for evaluation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from app import options
from datamodules.loaders import IGNORED, Batch
from datamodules.tasks import Drawn, Sizes, Task, varied
from datamodules.windows import mix

#: which windows: those of different splits have nothing in common
STREAMS = {"train": 0, "val": 1, "test": 2, "tuning": 3}


class ScoredBatch(NamedTuple):
    """A batch of an evaluation.

    Attributes:
        idx: ``(B, T)`` int64.
        targets: ``(B, T)`` int64, −100 where nothing is scored.
        slices: ``(B, T, S)`` int64, the slice of each kind that a position belongs to, as an index of all slices'
            names; −1 where it belongs to none.
        truth: ``(B, T, V)`` true distributions, or ``(B, T, 0)`` where targets are determined.
    """

    idx: Tensor
    targets: Tensor
    slices: Tensor
    truth: Tensor


@dataclass(frozen=True)
class TaskWindows:
    """The windows of a task, each a function of seed, split and its running number.

    Args:
        task: draws them.
        seed: of the data.
        split: ``train``, ``val``, ``test`` or ``tuning``.
    """

    task: Task
    seed: int
    split: str = "train"

    def draw(self, number: int, sizes: Sizes) -> Drawn:
        """One window.

        Args:
            number: its running number, at least 0.
            sizes: of the task, all of them.
        """
        key = mix(mix(np.array([self.seed], np.uint64)) ^ np.uint64(STREAMS[self.split]))
        generator = np.random.Generator(np.random.Philox(key=[int(key[0]), number]))
        fixed = {"seed": self.seed} if "seed" in options.options_of(self.task) else {}
        return self.task(generator, **fixed, **sizes)


class TaskDataset(Dataset[Batch]):
    """Training windows by running number; those of one optimizer step have one size, the steps take turns.

    Args:
        windows: of the task.
        rungs: the sizes, one step after the other.
        batch_size: windows per optimizer step.
        first: number of the window with which this launch began.
        repeat: if positive, only so many windows exist at each size, repeated in the same order.
    """

    def __init__(
        self, windows: TaskWindows, rungs: Sequence[Sizes], batch_size: int, first: int, repeat: int = 0
    ):
        self.windows, self.rungs = windows, rungs
        self.batch_size, self.first, self.repeat = batch_size, first, repeat

    def __getitems__(self, index: Sequence[int]) -> Batch:
        step = (self.first + (index[0] - self.first) // self.batch_size * self.batch_size) // self.batch_size
        sizes = self.rungs[step % len(self.rungs)]
        numbers = [number % self.repeat if self.repeat else number for number in index]
        drawn = [self.windows.draw(int(number), sizes) for number in numbers]
        return (
            torch.from_numpy(np.stack([window.inputs for window in drawn])),
            torch.from_numpy(np.stack([window.targets for window in drawn])),
        )


class EvaluationWindows:
    """A fixed set of windows at every size, with the slices that they fall into.

    Args:
        windows: of the task.
        rungs: the sizes.
        n_windows: how many of each.

    Attributes:
        slice_names: of all slices, such as ``n_pairs_4``, in order of kind and value.
    """

    def __init__(self, windows: TaskWindows, rungs: Sequence[Sizes], n_windows: int):
        kinds = varied(rungs)
        drawn = [
            [_sliced(windows.draw(n_windows * i + k, sizes), sizes, kinds) for k in range(n_windows)]
            for i, sizes in enumerate(rungs)
        ]
        names = {name for rung in drawn for window in rung for name in window.slices}
        self._kinds = sorted(names, key=lambda name: (name not in kinds, name))
        found = {
            (kind, int(value))
            for rung in drawn
            for window in rung
            for kind, values in window.slices.items()
            for value in np.unique(values)
            if value >= 0
        }
        order = sorted(found, key=lambda entry: (self._kinds.index(entry[0]), entry[1]))
        self.slice_names = [f"{kind}_{value}" for kind, value in order]
        self._number = {entry: i for i, entry in enumerate(order)}
        self._rungs = [self._stacked(rung) for rung in drawn]

    def __len__(self) -> int:
        return sum(len(rung.idx) for rung in self._rungs)

    @property
    def arrays(self) -> Iterator[np.ndarray]:
        """All inputs and targets, for a fingerprint."""
        for rung in self._rungs:
            yield rung.idx.numpy()
            yield rung.targets.numpy()

    def loader(self, batch_size: int, world_size: int, rank: int) -> "EvaluationLoader":
        """Every window once over all ranks, the same number of batches on each.

        Args:
            batch_size: windows of a batch.
            world_size: number of ranks.
            rank: of this process.
        """
        return EvaluationLoader(self._rungs, batch_size, world_size, rank)

    def _stacked(self, rung: Sequence[Drawn]) -> ScoredBatch:
        shape = (len(rung), len(rung[0].inputs))
        slices = np.full((*shape, len(self._kinds)), -1, dtype=np.int64)
        for row, window in enumerate(rung):
            for kind, values in window.slices.items():
                numbers = [
                    self._number.get((kind, int(value)), -1) for value in np.broadcast_to(values, shape[1])
                ]
                slices[row, :, self._kinds.index(kind)] = numbers
        nothing = np.zeros((shape[1], 0), dtype=np.float32)
        truth = np.stack([nothing if window.truth is None else window.truth for window in rung])
        inputs = np.stack([window.inputs for window in rung])
        targets = np.stack([window.targets for window in rung])
        return ScoredBatch(*map(torch.from_numpy, (inputs, targets, slices, truth)))


class EvaluationLoader:
    """Batches of one rank; windows that are missing to make all ranks' shares equal are unscored.

    Args:
        rungs: the windows of each size.
        batch_size: windows of a batch.
        world_size: number of ranks.
        rank: of this process.
    """

    def __init__(self, rungs: Sequence[ScoredBatch], batch_size: int, world_size: int, rank: int):
        self._rungs, self._batch_size = rungs, batch_size
        self._world_size, self._rank = world_size, rank

    def __len__(self) -> int:
        return sum(-(-self._share(rung) // self._batch_size) for rung in self._rungs)

    def __iter__(self) -> Iterator[ScoredBatch]:
        for rung in self._rungs:
            share = self._share(rung)
            for first in range(0, share, self._batch_size):
                number = torch.arange(first, min(first + self._batch_size, share)) + self._rank * share
                batch = ScoredBatch(*(part[number.clamp(max=len(rung.idx) - 1)] for part in rung))
                batch.targets[number >= len(rung.idx)] = IGNORED
                yield batch

    def _share(self, rung: ScoredBatch) -> int:
        return -(-len(rung.idx) // self._world_size)


def _sliced(window: Drawn, sizes: Sizes, kinds: Sequence[str]) -> Drawn:
    """A window of which those of its sizes that change are slices too, where they are whole numbers."""
    whole = {name: sizes[name] for name in kinds if isinstance(sizes[name], int)}
    return window._replace(slices={**whole, **window.slices})
