"""Windows of calls, and inputs that no cache holds."""

import time

import pytest
import torch

from app.bench.operators import Calls
from app.bench.timing import WARM_UP_CALLS, Marks, Timing, cache_bytes, measure, n_copies
from app.ops.case import Size, cases, closest_scores

CPU = torch.device("cpu")


def test_calls_get_their_numbers_in_turn_and_windows_alternate() -> None:
    made: list[tuple[str, int]] = []
    calls = {name: (lambda number, name=name: made.append((name, number))) for name in "ab"}
    found = measure(calls, CPU, n_windows=5, window_seconds=0.0)
    for name, timing in found.items():
        numbers = [number for other, number in made if other == name]
        assert numbers == list(range(len(numbers)))
        assert len(timing.windows) == 5
    assert (
        "".join(name for name, _ in made) == "a" * (WARM_UP_CALLS + 1) + "b" * (WARM_UP_CALLS + 1) + "ab" * 5
    )


def test_a_window_lasts_as_long_as_it_is_told() -> None:
    n_calls = 0

    def call(number: int) -> None:
        nonlocal n_calls
        n_calls += 1
        time.sleep(2e-3)

    found = measure({"sleep": call}, CPU, n_windows=3, window_seconds=8e-3)["sleep"]
    assert found.median >= 2e-3
    assert n_calls <= WARM_UP_CALLS + 1 + 3 * 4


def test_a_timing_in_numbers() -> None:
    timing = Timing((1.0, 4.0, 2.0))
    assert timing.median == 2
    assert timing.spread == 1.5
    marks = Marks(CPU)
    for _ in range(3):
        marks.set()
    assert len(marks.seconds()) == 2


def test_inputs_are_together_larger_than_the_cache() -> None:
    assert n_copies(10, cache=100) * 10 >= 200
    assert n_copies(1000, cache=100) == 2
    assert cache_bytes(CPU) >= 2**16


def test_inputs_take_turns() -> None:
    calls = Calls(cases("pathway_mix")["pathway_mix"], Size(1, 3, 4), CPU, torch.float32, quick=True)
    first, second = calls._sets
    assert not torch.equal(first["weights"], second["weights"])
    assert not any(x.eq(0).all() for x in (*first["outputs"], first["weights"]))


@pytest.mark.parametrize(("margin", "expected"), [(1e-3, [True, False, False]), (0.2, [True, True, False])])
def test_near_ties_are_told_by_the_row(margin: float, expected: list[bool]) -> None:
    nothing = float("-inf")
    scores = torch.tensor([[2.0, 1e-6, -1e-6, nothing], [2.0, 0.3, 0.0, -1.0], [2.0, 1.0, nothing, nothing]])
    assert closest_scores(scores, 2, margin).tolist() == expected
    assert not closest_scores(scores, 4, margin).any()
