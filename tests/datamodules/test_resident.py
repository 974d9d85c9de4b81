"""Batches that are sliced on the device are those of the loaders."""

from itertools import islice

import numpy as np
import pytest
import torch

from datamodules import resident
from datamodules.loaders import Placement, evaluation_loader, train_loader
from datamodules.resident import ResidentEvaluationLoader, ResidentTrainLoader, on_device
from datamodules.windows import TrainWindows

TOKENS = np.random.default_rng(0).integers(0, 40_000, 203).astype(np.uint16)
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("high", "dtype"),
    [
        (255, torch.uint8),
        (256, torch.int16),
        (32767, torch.int16),
        (32768, torch.int32),
        (65535, torch.int32),
    ],
)
def test_tokens_take_the_smallest_type_that_can_be_indexed(high: int, dtype: torch.dtype) -> None:
    tokens = np.array([0, high], dtype=np.min_scalar_type(high))
    kept = on_device(tokens, CPU)
    assert kept.dtype == dtype
    assert kept.tolist() == [0, high]


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (2, 1), (3, 2)])
@pytest.mark.parametrize("ahead", [1, 3 * 8 * 12, 1 << 20])
def test_training_batches(
    world_size: int, accumulation: int, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "_TOKENS_AHEAD", ahead)
    windows = TrainWindows(len(TOKENS), 8, seed=3)
    for rank in range(world_size):
        place = Placement(world_size, rank, accumulation, window=5 * 12)
        streamed = islice(train_loader(TOKENS, windows, 12, 0, place), 20)
        sliced = islice(ResidentTrainLoader(on_device(TOKENS, CPU), windows, 12, place), 20)
        for (x, y), (x_sliced, y_sliced) in zip(streamed, sliced, strict=True):
            assert torch.equal(x, x_sliced)
            assert torch.equal(y, y_sliced)
            assert x_sliced.dtype == torch.int64
            assert x_sliced.is_contiguous()


def test_tiny_batches_are_cut_a_few_hundred_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = ResidentTrainLoader(on_device(TOKENS, CPU), TrainWindows(len(TOKENS), 8, seed=3), 1, Placement())
    asked: list[int] = []
    starts = TrainWindows.starts

    def counted(self: TrainWindows, index: np.ndarray) -> np.ndarray:
        asked.append(len(index))
        return starts(self, index)

    monkeypatch.setattr(TrainWindows, "starts", counted)
    assert len(list(islice(loader, 300))) == 300
    assert asked == [256, 256]


def test_a_batch_larger_than_what_is_cut_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "_TOKENS_AHEAD", 100)
    windows = TrainWindows(len(TOKENS), 50, seed=3)
    (x, y), *_ = islice(ResidentTrainLoader(on_device(TOKENS, CPU), windows, 64, Placement(window=192)), 2)
    (x_streamed, y_streamed), *_ = islice(train_loader(TOKENS, windows, 64, 0, Placement(window=192)), 1)
    assert torch.equal(x, x_streamed)
    assert torch.equal(y, y_streamed)


@pytest.mark.parametrize("n_tokens", [2, 8, 9, 10, 64, 65, 203])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 3, 8])
def test_evaluation_batches(n_tokens: int, world_size: int, stride: int) -> None:
    tokens = TOKENS[:n_tokens]
    for rank in range(world_size):
        place = Placement(world_size, rank)
        streamed = list(evaluation_loader(tokens, 8, 6, 0, place, stride))
        loader = ResidentEvaluationLoader(on_device(tokens, CPU), 8, 6, stride, place)
        sliced = list(loader)
        assert len(loader) == len(sliced) == len(streamed)
        for (x, y), (x_sliced, y_sliced) in zip(streamed, sliced, strict=True):
            assert torch.equal(y, y_sliced)
            assert torch.equal(x, x_sliced)
