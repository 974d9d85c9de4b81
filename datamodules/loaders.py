"""Loaders over token arrays: an endless one for training, an exact one for evaluation."""

import atexit
import multiprocessing
import signal
import time
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from app.run.signals import ignore_in_worker, starting_processes
from datamodules.windows import TrainWindows, micro_batch_index, shard

Batch = tuple[Tensor, Tensor]
#: windows whose places are worked out at once
_WINDOWS_AHEAD = 512
IGNORED = -100  # target of a position that does not count, the default of torch's cross-entropy


class Placement(NamedTuple):
    """Which part of every batch this process works on.

    Attributes:
        world_size: number of ranks.
        rank: of this process, in ``[0, world_size)``.
        accumulation: micro-batches per optimizer step.
        window: windows consumed so far, where the training stream goes on.
        pin_memory: page-locked batches, for a CUDA device.
    """

    world_size: int = 1
    rank: int = 0
    accumulation: int = 1
    window: int = 0
    pin_memory: bool = False


class Stopwatch:
    """Adds up the time that it takes to get batches.

    Attributes:
        seconds: so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; what happens between them is not counted."""
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self.seconds += time.perf_counter() - began
            if batch is None:
                return
            yield batch


class WorkerLoader(DataLoader[Batch]):
    """A data loader that loses no worker to a signal, and names one lost at any moment, also in a hand-over."""

    def __iter__(self) -> Any:
        with starting_processes():
            batches = super().__iter__()
        return _told_of_losses(batches)


class TimedLoader(WorkerLoader):
    """The same on a stopwatch.

    Args:
        stopwatch: gets the time that its batches take.
        options: of the data loader.
    """

    def __init__(self, stopwatch: Stopwatch, **options: Any):
        super().__init__(**options)
        self.stopwatch = stopwatch

    def __iter__(self) -> Any:
        return self.stopwatch.timed(super().__iter__())


def _told_of_losses(batches: Iterator[Batch]) -> Iterator[Batch]:
    try:
        yield from batches
    except (ConnectionError, EOFError, FileNotFoundError):
        # The other end of a hand-over is gone. The signal of its death is on its way, and PyTorch's handler of it
        # raises an error that names the process and what killed it.
        time.sleep(1.0)
        raise


class TrainDataset(Dataset[Batch]):
    """Training windows by running number; a whole micro-batch is gathered at once."""

    def __init__(self, tokens: np.ndarray, windows: TrainWindows):
        self.tokens = tokens
        self.windows = windows
        self._first, self._starts = 0, np.zeros(0, dtype=np.int64)

    def __getitems__(self, index: Sequence[int]) -> Batch:
        starts = self._starts_of(np.asarray(index))
        span = np.arange(self.windows.block_size + 1)
        window_bt = self.tokens[starts[:, None] + span].astype(np.int64)
        return torch.from_numpy(window_bt[:, :-1].copy()), torch.from_numpy(window_bt[:, 1:].copy())

    def _starts_of(self, index: np.ndarray) -> np.ndarray:
        """Where windows begin, worked out for many of them at once: of a few it is the calls that take the time."""
        first, last = int(index.min()), int(index.max())
        if last - first >= _WINDOWS_AHEAD:
            return self.windows.starts(index)
        if first < self._first or last >= self._first + len(self._starts):
            self._first = first
            self._starts = self.windows.starts(np.arange(first, first + _WINDOWS_AHEAD))
        return self._starts[index - self._first]


class EndlessBatchSampler(Sampler[list[int]]):
    """Micro-batches of one rank from a given window on, without an end and so without a length.

    The position is the number of windows consumed. The framework counts the batches of a resumed run but skips
    none, and workers ask ahead of the training loop, so neither may be taken for the position.
    """

    def __init__(self, batch_size: int, placement: Placement):
        shard(batch_size, placement.world_size, placement.accumulation)  # raises if they do not divide
        self.batch_size = batch_size
        self.placement = placement

    def __iter__(self) -> Iterator[list[int]]:
        world_size, rank, accumulation, first_window, _ = self.placement
        for window in count(first_window, self.batch_size):
            for micro in range(accumulation):
                yield micro_batch_index(
                    window,
                    micro,
                    rank,
                    batch_size=self.batch_size,
                    world_size=world_size,
                    accumulation=accumulation,
                ).tolist()


class EvaluationDataset(Dataset[Batch]):
    """Windows that hold every target ``tokens[1:]`` exactly once over all ranks.

    A window begins ``stride`` tokens after the one before it and has as many new targets at its end; the
    others, which earlier windows have held, are context only and :data:`IGNORED`. All targets of the first
    window count. With ``stride`` equal to ``block_size`` windows follow one another without overlap; the
    smaller it is, the more context each target has, at least ``block_size - stride`` tokens, and the more
    windows there are.

    Windows are dealt to the ranks in contiguous shares of equal size, so that all ranks take part in the
    same number of collectives. What is missing (the end of the last window, whole windows of the last
    ranks) has input 0 and target :data:`IGNORED`; a mean over such a batch must be weighted by the number
    of targets that count, which may be 0.

    Args:
        tokens: ``(n,)``, at least 2.
        block_size: tokens per window.
        stride: in [1, block_size].
        world_size: number of ranks.
        rank: of this process.
    """

    def __init__(self, tokens: np.ndarray, block_size: int, stride: int, world_size: int, rank: int):
        assert len(tokens) >= 2, "the caller checks that there is a target"
        assert 1 <= stride <= block_size, "the caller checks the range"
        self.tokens = tokens
        self.block_size = block_size
        self.stride = stride
        n_windows = 1 + max(0, -(-(len(tokens) - 1 - block_size) // stride))
        self.n_windows = -(-n_windows // world_size)
        self.first = rank * self.n_windows

    def __len__(self) -> int:
        return self.n_windows

    def __getitems__(self, index: Sequence[int]) -> Batch:
        x = np.zeros((len(index), self.block_size), dtype=np.int64)
        y = np.full_like(x, IGNORED)
        for row, number in enumerate(index):
            start = (self.first + number) * self.stride
            context = 0 if start == 0 else self.block_size - self.stride
            targets = self.tokens[start + 1 : start + 1 + self.block_size]
            x[row, : len(targets)] = self.tokens[start : start + len(targets)]
            y[row, context : len(targets)] = targets[context:]
        return torch.from_numpy(x), torch.from_numpy(y)


def train_loader(
    tokens: np.ndarray,
    windows: TrainWindows,
    batch_size: int,
    num_workers: int,
    placement: Placement,
    stopwatch: Stopwatch | None = None,
) -> DataLoader[Batch]:
    """Endless loader of ``(x, y)``, each ``(micro-batch, block_size)`` int64, on a stopwatch.

    Raises:
        ConfigurationError: ``batch_size`` cannot be divided among ranks and micro-batches.
    """
    return TimedLoader(
        stopwatch or Stopwatch(),
        dataset=TrainDataset(tokens, windows),
        batch_sampler=EndlessBatchSampler(batch_size, placement),
        **loader_options(num_workers, placement),
    )


def evaluation_loader(
    tokens: np.ndarray,
    block_size: int,
    batch_size: int,
    num_workers: int,
    placement: Placement,
    stride: int | None = None,
) -> DataLoader[Batch]:
    """Loader of every target once; batches as large as the micro-batches of training, the last one smaller.

    Without ``stride`` windows do not overlap, see :class:`EvaluationDataset`.

    Raises:
        ConfigurationError: ``batch_size`` cannot be divided among ranks and micro-batches.
    """
    dataset = EvaluationDataset(
        tokens, block_size, stride or block_size, placement.world_size, placement.rank
    )
    return WorkerLoader(
        dataset,
        batch_size=shard(batch_size, placement.world_size, placement.accumulation),
        **loader_options(num_workers, placement),
    )


def prepare_worker(worker_id: int) -> None:
    """Start of a loader worker: it survives signals meant for the run, and uses one thread.

    Signals to the whole process group (a scheduler's SIGTERM, Ctrl-C) must not end a worker while the main
    process finishes its step; the main process ends its workers itself. They have been blocked since the worker began.
    """
    ignore_in_worker()
    torch.set_num_threads(1)


def end_workers() -> None:
    """Ends loader workers that a failed or interrupted run has left.

    At exit the standard library asks daemonic children to end with SIGTERM, which ours ignore, and waits for
    them without a limit.
    """
    workers = [child for child in multiprocessing.active_children() if child.daemon]
    if workers:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would call each of them lost
    for worker in workers:
        worker.kill()


atexit.register(end_workers)  # after, so run before, that of the standard library


def loader_options(num_workers: int, placement: Placement) -> dict[str, Any]:
    """What every loader of ours is made with."""
    return {
        "num_workers": num_workers,
        "worker_init_fn": prepare_worker,
        "persistent_workers": num_workers > 0,
        "pin_memory": placement.pin_memory,
        "collate_fn": _as_is,
    }


def _as_is(batch: Batch) -> Batch:
    """The datasets return whole batches; there is nothing to collate."""
    return batch
