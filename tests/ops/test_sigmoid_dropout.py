"""Which weights the sigmoid attention drops: as good as independent draws, and the same from the same seed."""

import pytest
import torch
from torch import Tensor

from app.ops.sigmoid_attention import dropped_weights
from app.ops.sigmoid_attention.dropout import Dropout

B, H, T = 4, 8, 128


def drawn(probability: float, *seed: int) -> Tensor:
    """What is dropped, centred and in units of its standard deviation."""
    dropped = Dropout(probability, torch.tensor(seed, dtype=torch.int32)).is_dropped(B, H, T, T)
    return (dropped.double() - probability) / (probability * (1 - probability)) ** 0.5


def in_deviations(products: Tensor) -> float:
    """Their mean, in standard deviations of a mean of independent ones."""
    return abs(products.mean().item()) * products.numel() ** 0.5


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_dropped_weights_look_independent(probability: float) -> None:
    x, other, third = (drawn(probability, *seed) for seed in ((5, -9), (6, -9), (5, -8)))
    assert in_deviations(x) < 4.5
    assert in_deviations(x * other) < 4.5
    assert in_deviations(x * third) < 4.5
    for step in (1, 2, 16):
        rows, columns = x[:, :, step:] * x[:, :, :-step], x[..., step:] * x[..., :-step]
        rectangles = rows[..., step:] * rows[..., :-step]
        of_heads, of_windows = x.roll(step % H, 1) * x, x.roll(step % B, 0) * x
        pairs = [
            rows,
            columns,
            rectangles,
            *([of_heads] if step % H else []),
            *([of_windows] if step % B else []),
        ]
        assert max(map(in_deviations, pairs)) < 4.5, step
    for axis in (-1, -2):
        assert 0.9 < x.sum(axis).var() / T < 1.1  # as many in every row and column as chance has it


def test_a_weight_stays_dropped_however_many_stand_beside_it() -> None:
    few, many = (
        Dropout(0.3, torch.tensor([7, 8], dtype=torch.int32)).is_dropped(*n)
        for n in ((2, 1, 3, 5), (3, 1, 9, 9))
    )
    assert torch.equal(few, many[:2, :, :3, :5])


def test_what_stays_is_scaled_and_gradients_follow() -> None:
    weights = torch.rand(2, 3, 20, 20, requires_grad=True)
    seed = torch.tensor([1, 2], dtype=torch.int32)
    y = dropped_weights(weights, 0.25, seed)
    stays = y != 0
    torch.testing.assert_close(y[stays], weights[stays] / 0.75)
    (gradient,) = torch.autograd.grad(y.sum(), weights)
    torch.testing.assert_close(gradient, stays / 0.75)
    assert dropped_weights(weights, 0.0) is weights


@pytest.mark.parametrize(
    ("probability", "least", "most"), [(2.0**-33, 0.0, 0.0), (1 - 2.0**-33, 1.0, 1.0), (0.5, 0.4, 0.6)]
)
def test_the_ends_of_the_range(probability: float, least: float, most: float) -> None:
    seed = torch.tensor([3, 4], dtype=torch.int32)
    share = Dropout(probability, seed).is_dropped(1, 1, 64, 64).double().mean()
    assert least <= share <= most
