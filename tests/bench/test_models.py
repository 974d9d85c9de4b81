"""Times of a step by several paths in one run."""

import pytest
import torch

from app.bench import ceilings
from app.bench.models import ANY_ORDER, times
from app.bench.steps import BareStep, Batch, Subject

CPU = torch.device("cpu")


def test_a_path_is_timed_a_second_time_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    compute, strict = BareStep._compute, []

    def seen(step: BareStep, batch: Batch, is_captured: bool) -> object:
        strict.append(torch.are_deterministic_algorithms_enabled())
        return compute(step, batch, is_captured)

    monkeypatch.setattr(BareStep, "_compute", seen)
    subject = Subject("gpt_char", CPU, sizes={"block_size": 8, "batch_size": 2, "n_layers": 1, "d_model": 16})
    torch.use_deterministic_algorithms(True)
    try:
        rows = times(subject, ["eager"], ceilings.measured(CPU, 2, True), 2, quick=True, in_any_order=True)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert [row.path for row in rows] == ["eager", "eager" + ANY_ORDER, "naive"]
    assert strict.count(False) == 2 * strict.count(True) > 0  # the reference may add up in any order anyway
