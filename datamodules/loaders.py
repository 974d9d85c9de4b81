"""Loaders over token arrays: an endless one for training, an exact one for evaluation."""

import atexit
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from app.run.signals import ignore_in_worker
from datamodules.windows import TrainWindows, micro_batch_index, shard

Batch = tuple[Tensor, Tensor]
IGNORED = -100  # target of a position that does not count, the default of torch's cross-entropy


class Placement(NamedTuple):
    """Which part of every batch this process works on.

    Attributes:
        world_size: number of ranks.
        rank: of this process, in ``[0, world_size)``.
        accumulation: micro-batches per optimizer step.
        step: completed optimizer steps, where the training stream goes on.
        pin_memory: page-locked batches, for a CUDA device.
    """

    world_size: int = 1
    rank: int = 0
    accumulation: int = 1
    step: int = 0
    pin_memory: bool = False


class TrainDataset(Dataset[Batch]):
    """Training windows by running number; a whole micro-batch is gathered at once."""

    def __init__(self, tokens: np.ndarray, windows: TrainWindows):
        self.tokens = tokens
        self.windows = windows

    def __getitems__(self, index: Sequence[int]) -> Batch:
        starts = self.windows.starts(np.asarray(index))
        span = np.arange(self.windows.block_size + 1)
        window_bt = self.tokens[starts[:, None] + span].astype(np.int64)
        return torch.from_numpy(window_bt[:, :-1].copy()), torch.from_numpy(window_bt[:, 1:].copy())


class EndlessBatchSampler(Sampler[list[int]]):
    """Micro-batches of one rank from a given optimizer step on, without an end and so without a length.

    The position is the optimizer step alone. The framework counts the batches of a resumed run but skips
    none, and workers ask ahead of the training loop, so neither may be taken for the position.
    """

    def __init__(self, batch_size: int, placement: Placement):
        shard(batch_size, placement.world_size, placement.accumulation)  # raises if they do not divide
        self.batch_size = batch_size
        self.placement = placement

    def __iter__(self) -> Iterator[list[int]]:
        world_size, rank, accumulation, first_step, _ = self.placement
        for step in count(first_step):
            for micro in range(accumulation):
                yield micro_batch_index(
                    step,
                    micro,
                    rank,
                    batch_size=self.batch_size,
                    world_size=world_size,
                    accumulation=accumulation,
                ).tolist()


class EvaluationDataset(Dataset[Batch]):
    """Consecutive windows that hold every target ``tokens[1:]`` exactly once over all ranks.

    Windows are dealt to the ranks in contiguous shares of equal size, so that all ranks take part in the
    same number of collectives. What is missing (the end of the last window, whole windows of the last
    ranks) has input 0 and target :data:`IGNORED`; a mean over such a batch must be weighted by the number
    of targets that count, which may be 0.
    """

    def __init__(self, tokens: np.ndarray, block_size: int, world_size: int, rank: int):
        assert len(tokens) >= 2, "the caller checks that there is a target"
        self.tokens = tokens
        self.block_size = block_size
        n_windows = -(-(len(tokens) - 1) // block_size)
        self.n_windows = -(-n_windows // world_size)
        self.first = rank * self.n_windows

    def __len__(self) -> int:
        return self.n_windows

    def __getitems__(self, index: Sequence[int]) -> Batch:
        x = np.zeros((len(index), self.block_size), dtype=np.int64)
        y = np.full_like(x, IGNORED)
        for row, number in enumerate(index):
            start = (self.first + number) * self.block_size
            targets = self.tokens[start + 1 : start + 1 + self.block_size]
            x[row, : len(targets)] = self.tokens[start : start + len(targets)]
            y[row, : len(targets)] = targets
        return torch.from_numpy(x), torch.from_numpy(y)


def train_loader(
    tokens: np.ndarray, windows: TrainWindows, batch_size: int, num_workers: int, placement: Placement
) -> DataLoader[Batch]:
    """Endless loader of ``(x, y)``, each ``(micro-batch, block_size)`` int64.

    Raises:
        ConfigurationError: ``batch_size`` cannot be divided among ranks and micro-batches.
    """
    return DataLoader(
        TrainDataset(tokens, windows),
        batch_sampler=EndlessBatchSampler(batch_size, placement),
        **_options(num_workers, placement),
    )


def evaluation_loader(
    tokens: np.ndarray, block_size: int, batch_size: int, num_workers: int, placement: Placement
) -> DataLoader[Batch]:
    """Loader of every target once; batches as large as the micro-batches of training, the last one smaller.

    Raises:
        ConfigurationError: ``batch_size`` cannot be divided among ranks and micro-batches.
    """
    dataset = EvaluationDataset(tokens, block_size, placement.world_size, placement.rank)
    return DataLoader(
        dataset,
        batch_size=shard(batch_size, placement.world_size, placement.accumulation),
        **_options(num_workers, placement),
    )


def prepare_worker(worker_id: int) -> None:
    """Start of a loader worker: it survives signals meant for the run, and uses one thread.

    Signals to the whole process group (a scheduler's SIGTERM, Ctrl-C) must not end a worker while the main
    process finishes its step; the main process ends its workers itself.
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


def _options(num_workers: int, placement: Placement) -> dict[str, Any]:
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
