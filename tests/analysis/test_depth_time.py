import io
import itertools

import numpy as np
import pytest
import torch

from app.analysis.depth_time import DepthTime, Rows, of_measure
from app.records import Axis, Measure

LAYER = Axis("layer")


def _fed(kept: DepthTime, steps: range) -> DepthTime:
    for step in steps:
        kept.add(step, _numbers(step))
    return kept


def _numbers(step: int) -> np.ndarray:
    return np.array([step, step**2 / 64, 1.0])


@pytest.mark.parametrize("n", [1, 7, 8, 9, 16, 17, 31, 100])
def test_columns_are_means_of_equally_many_steps(n: int) -> None:
    kept = _fed(DepthTime(3, max_columns=8), range(1, n + 1))
    edges = kept.edges.astype(int)
    assert len(edges) - 1 <= 8
    assert edges[0] == 0 and edges[-1] == n
    widths = np.diff(edges)
    assert (widths[:-1] == kept.stride).all() and widths[-1] <= kept.stride
    for column, (before, last) in enumerate(itertools.pairwise(edges)):
        expected = np.mean([_numbers(step) for step in range(before + 1, last + 1)], axis=0)
        np.testing.assert_allclose(kept.values[:, column], expected, rtol=1e-6)


@pytest.mark.parametrize("cut", [0, 1, 8, 9, 33])
def test_an_interruption_leaves_no_trace(cut: int) -> None:
    whole = _fed(DepthTime(3, max_columns=8), range(1, 50))
    first = _fed(DepthTime(3, max_columns=8), range(1, cut + 1))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed = DepthTime.from_state_dict(torch.load(file, weights_only=True), max_columns=8)
    _fed(resumed, range(cut + 1, 50))
    np.testing.assert_array_equal(resumed.values, whole.values)
    assert (resumed.steps, resumed.counts, resumed.stride) == (whole.steps, whole.counts, whole.stride)


def test_a_measure_says_what_its_rows_are() -> None:
    values = torch.arange(12.0).view(2, 2, 3)
    measure = Measure(
        values, (LAYER, Axis("lane", ("slow", "fast")), Axis("bank")), "share", torch.tensor(0.5)
    )
    rows, matrix = of_measure("used", measure)
    names = ("slow · 0", "slow · 1", "slow · 2", "fast · 0", "fast · 1", "fast · 2")
    assert rows == Rows("used", "share", ("0", "1"), names, 3, "bank", ((0.5,) * 6,) * 2)
    np.testing.assert_array_equal(matrix, values.numpy().reshape(2, 6))


def test_a_measure_without_entries_and_with_named_layers() -> None:
    measure = Measure(torch.tensor([1.0, 2.0]), (Axis("layer", ("3", "7")),), "level", unit="nats")
    rows, matrix = of_measure("doubt", measure)
    assert rows == Rows("doubt", "level", ("3", "7"), unit="nats")
    assert matrix.shape == (2, 1)


@pytest.mark.parametrize(("kind", "expected"), [("gain", 49.5), ("share", 99.0)])
def test_many_entries_become_one(kind: str, expected: float) -> None:
    values = torch.arange(100.0).expand(3, 100)
    rows, matrix = of_measure("wide", Measure(values, (LAYER, Axis("channel")), kind))
    assert matrix.tolist() == [[expected]] * 3
    assert rows.note == ("mean of 100" if kind == "gain" else "largest of 100")
    assert rows.entries == ("",)
