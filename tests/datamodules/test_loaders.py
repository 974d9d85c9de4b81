"""Loaders: the training stream and the exact evaluation."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from itertools import islice
from multiprocessing import popen_spawn_posix
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data._utils import signal_handling

from app.run.errors import ConfigurationError
from app.run.signals import StopRequests
from datamodules.loaders import (
    IGNORED,
    Placement,
    Stopwatch,
    TrainDataset,
    evaluation_loader,
    train_loader,
)
from datamodules.windows import TrainWindows

TOKENS = np.arange(200, dtype=np.uint8)
BLOCK_SIZE = 8
BATCH_SIZE = 12
WINDOWS = TrainWindows(len(TOKENS), BLOCK_SIZE, seed=1)


def first_batches(n: int, num_workers: int = 0, **placement: int) -> list[tuple[Tensor, Tensor]]:
    loader = train_loader(TOKENS, WINDOWS, BATCH_SIZE, num_workers, Placement(**placement))
    return list(islice(loader, n))


def global_batches(n_steps: int, world_size: int, accumulation: int, num_workers: int = 0) -> Tensor:
    """Inputs of all steps, put together from all ranks, ``(n_steps, BATCH_SIZE, BLOCK_SIZE)``."""
    ranks = [
        torch.stack(
            [
                x
                for x, _ in first_batches(
                    n_steps * accumulation,
                    num_workers,
                    world_size=world_size,
                    rank=rank,
                    accumulation=accumulation,
                )
            ]
        ).view(n_steps, -1, BLOCK_SIZE)
        for rank in range(world_size)
    ]
    return torch.cat(ranks, dim=1)


def test_places_worked_out_ahead_are_those_of_each_window() -> None:
    tokens, windows = np.arange(4000, dtype=np.uint16), TrainWindows(4000, 8, seed=3)
    dataset = TrainDataset(tokens, windows)
    # In order, over the edge of what was worked out, back, apart, and further apart than that.
    for index in ([0, 1], [2, 3], [510, 511], [512, 513], [511, 512, 513], [9, 4], [3000], [0, 5000]):
        expected = windows.starts(np.array(index))
        assert dataset.__getitems__(index)[0][:, 0].tolist() == expected.tolist()


def test_targets_are_the_inputs_one_token_further() -> None:
    (x, y), *_ = first_batches(1)
    assert x.shape == y.shape == (BATCH_SIZE, BLOCK_SIZE)
    assert x.dtype == y.dtype == torch.int64
    starts = WINDOWS.starts(np.arange(BATCH_SIZE))
    assert x.tolist() == [list(range(start, start + BLOCK_SIZE)) for start in starts]
    assert y.tolist() == [list(range(start + 1, start + 1 + BLOCK_SIZE)) for start in starts]
    assert x.is_contiguous()
    assert y.is_contiguous()


def test_exact_windows_of_a_tiny_text() -> None:
    windows = TrainWindows(n_tokens=5, block_size=4, seed=0)
    loader = train_loader(np.array([3, 1, 4, 1, 5], dtype=np.uint8), windows, 1, 0, Placement())
    for x, y in islice(loader, 3):
        assert x.tolist() == [[3, 1, 4, 1]]
        assert y.tolist() == [[1, 4, 1, 5]]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_global_batches_are_the_same_for_every_division(world_size: int, accumulation: int) -> None:
    # Eight steps are four epochs of 24 windows: batches that span two epochs are among them.
    assert torch.equal(global_batches(8, world_size, accumulation), global_batches(8, 1, 1))


def test_workers_change_nothing() -> None:
    assert torch.equal(global_batches(6, 2, 2, num_workers=2), global_batches(6, 1, 1))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_stream_started_at_a_window_goes_on_there(accumulation: int) -> None:
    whole = first_batches(10 * accumulation, accumulation=accumulation)
    resumed = first_batches(3 * accumulation, accumulation=accumulation, window=7 * BATCH_SIZE)
    for (x, y), (x_resumed, y_resumed) in zip(whole[7 * accumulation :], resumed, strict=True):
        assert torch.equal(x, x_resumed)
        assert torch.equal(y, y_resumed)


def test_the_training_loader_has_no_length() -> None:
    loader = train_loader(TOKENS, WINDOWS, BATCH_SIZE, 0, Placement())
    with pytest.raises(TypeError):
        len(loader)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="batch_size: 12"):
        train_loader(TOKENS, WINDOWS, BATCH_SIZE, 0, Placement(world_size=5))


@pytest.mark.parametrize("n_tokens", [2, 3, 8, 9, 10, 63, 64, 65, 199])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_holds_every_target_once(n_tokens: int, world_size: int) -> None:
    pairs: list[tuple[int, int]] = []
    shapes = []
    for rank in range(world_size):
        loader = evaluation_loader(TOKENS[:n_tokens], BLOCK_SIZE, 6, 0, Placement(world_size, rank))
        batches = list(loader)
        assert len(batches) == len(loader)
        shapes.append([x.shape for x, _ in batches])
        for x, y in batches:
            assert x.shape == y.shape
            assert (x[y == IGNORED] == 0).all()
            pairs += zip(x[y != IGNORED].tolist(), y[y != IGNORED].tolist(), strict=True)
    assert pairs == [(i, i + 1) for i in range(n_tokens - 1)]  # in the order of the text
    assert all(shape == shapes[0] for shape in shapes)  # the same collectives on every rank


def test_evaluation_with_workers() -> None:
    alone, helped = (
        list(evaluation_loader(TOKENS, BLOCK_SIZE, 6, num_workers, Placement())) for num_workers in (0, 2)
    )
    for (x, y), (x_helped, y_helped) in zip(alone, helped, strict=True):
        assert torch.equal(x, x_helped)
        assert torch.equal(y, y_helped)


def test_workers_survive_signals_meant_for_the_run() -> None:
    batches = iter(train_loader(TOKENS, WINDOWS, BATCH_SIZE, 1, Placement()))
    next(batches)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        os.kill(worker.pid, number)
    for x, _ in islice(batches, 5):
        assert len(x) == BATCH_SIZE
    assert worker.is_alive()
    del batches
    worker.join(10)
    assert not worker.is_alive()


strike: signal.Signals | None = None  # what a forked process sends itself as soon as it is there


def _struck() -> None:
    if strike is not None:
        os.kill(os.getpid(), strike)


os.register_at_fork(after_in_child=_struck)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ["forked", "handlers set"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_workers_survive_signals_from_their_first_moment_on(
    split: str, moment: str, signum: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = StopRequests()
    requests.deferring = split == "val"  # those for training start before the first step
    if moment == "forked":
        monkeypatch.setattr(sys.modules[__name__], "strike", signum)
    else:  # PyTorch sets handlers of its own in every worker, of which SIGTERM's kills
        original = signal_handling._set_worker_signal_handlers

        def set_and_strike() -> None:
            original()
            os.kill(os.getpid(), signum)

        monkeypatch.setattr(signal_handling, "_set_worker_signal_handlers", set_and_strike)
    try:
        if split == "train":
            batches = iter(train_loader(TOKENS, WINDOWS, BATCH_SIZE, 2, Placement()))
        else:
            batches = iter(evaluation_loader(TOKENS, BLOCK_SIZE, 6, 2, Placement()))
        for x, _ in islice(batches, 3):
            assert len(x)
        assert requests.requested is None
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
    finally:
        requests.restore()


@pytest.mark.stress
def test_spawned_workers_survive_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # As on systems that do not fork. A fresh interpreter is struck where it would be killed: at its start.
    monkeypatch.setattr(popen_spawn_posix.Popen, "_launch", _launched_and_struck)
    loader = train_loader(TOKENS, WINDOWS, BATCH_SIZE, 1, Placement())
    loader.multiprocessing_context = "spawn"
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        for x, _ in islice(loader, 2):
            assert len(x) == BATCH_SIZE
    finally:
        multiprocessing.set_start_method(before, force=True)


_launch = popen_spawn_posix.Popen._launch


def _launched_and_struck(self: popen_spawn_posix.Popen, process: object) -> None:
    _launch(self, process)
    os.kill(self.pid, signal.SIGTERM)


def test_evaluation_windows_are_blocks_of_the_text() -> None:
    x, y = next(iter(evaluation_loader(TOKENS[:12], BLOCK_SIZE, 2, 0, Placement())))
    assert x.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 0, 0, 0, 0, 0]]
    assert y.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11, *[IGNORED] * 5]]


@pytest.mark.parametrize("n_tokens", [2, 8, 9, 10, 17, 64, 199])
@pytest.mark.parametrize("stride", [1, 3, 7, 8])
@pytest.mark.parametrize("world_size", [1, 3])
def test_strided_windows_give_each_target_once_and_its_context(
    n_tokens: int, stride: int, world_size: int
) -> None:
    seen: list[int] = []
    for rank in range(world_size):
        loader = evaluation_loader(TOKENS[:n_tokens], BLOCK_SIZE, 6, 0, Placement(world_size, rank), stride)
        for x, y in loader:
            for x_t, y_t in zip(x.tolist(), y.tolist(), strict=True):
                for place, target in enumerate(y_t):
                    if target == IGNORED:
                        continue
                    seen.append(target)
                    # Tokens are their own positions: everything before the target is there, in order.
                    assert x_t[: place + 1] == list(range(target - place - 1, target))
                    assert place + 1 == target or place >= BLOCK_SIZE - stride
    assert seen == list(range(1, n_tokens))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")
@pytest.mark.parametrize("num_workers", [0, 4])
def test_ranks_and_workers_see_one_sequence(num_workers: int) -> None:
    expected = global_batches(4, 1, 1)
    assert torch.equal(global_batches(4, 3, 1, num_workers=num_workers), expected)


def test_the_stopwatch_counts_the_loader_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("datamodules.loaders.time.perf_counter", lambda: now[0])

    def slow() -> Iterator[Any]:
        for _ in range(3):
            now[0] += 2.0
            yield torch.zeros(1), torch.zeros(1)

    stopwatch = Stopwatch()
    for _ in stopwatch.timed(slow()):
        now[0] += 100.0
    assert stopwatch.seconds == 6.0


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_training_loader_is_on_a_stopwatch(num_workers: int) -> None:
    stopwatch = Stopwatch()
    tokens = np.arange(100, dtype=np.uint8)
    loader = train_loader(tokens, TrainWindows(100, 8, seed=0), 4, num_workers, Placement(), stopwatch)
    next(iter(loader))
    assert stopwatch.seconds > 0
