"""The task can be solved from its inputs, and its windows are those of their seed."""

import numpy as np
import torch
from reversal import reversal

from datamodules import SyntheticDataModule


def windows(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return SyntheticDataModule(reversal, {"n_symbols": 5}, batch_size=50, seed=seed).training_batch(0, 0)


def test_a_solver_is_right_wherever_something_is_asked() -> None:
    for inputs, targets in zip(*map(torch.Tensor.numpy, windows()), strict=True):
        assert np.array_equal(targets[5:], inputs[4::-1])
        assert np.all(targets[:5] == -100)


def test_shuffled_targets_are_at_chance() -> None:
    inputs, targets = windows()
    right = (inputs[:, :5].flip(1) == targets[torch.randperm(50), 5:]).float().mean()
    assert right < 0.25


def test_a_seed_repeats_and_another_differs() -> None:
    assert torch.equal(windows()[0], windows()[0])
    assert not torch.equal(windows()[0], windows(1)[0])
