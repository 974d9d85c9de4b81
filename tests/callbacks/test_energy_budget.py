import pytest
import torch

from app.models.equilibrium import EquilibriumLM
from app.records import Axis, LanguageModelOutput, Measure, StepRecord
from callbacks import BankBalance, EnergyBudget, RouteFractions, RunningThresholds

LAYER = Axis("layer")


def test_scalars_and_details() -> None:
    measures = {
        "budget": Measure(torch.tensor([1.5, 2.0]), (LAYER,), "level", unit="units"),
        "tokens_at": Measure(
            torch.tensor([[6, 2], [4, 4]]), (LAYER, Axis("units", ("1", "2"))), "count", reduce="sum"
        ),
        "rows": Measure(
            torch.tensor([[3, 1], [4, 0]]), (LAYER, Axis("cap", ("below", "hit"))), "count", reduce="sum"
        ),
        "overflow": Measure(
            torch.tensor([[0, 2], [1, 3]]),
            (LAYER, Axis("overflow", ("branch", "back"))),
            "count",
            reduce="sum",
        ),
    }
    scalars, details = EnergyBudget().report(measures)
    assert scalars["budget/budget"] == pytest.approx(1.75)
    assert scalars["budget/budget/l01"] == pytest.approx(2.0)
    assert scalars["budget/tokens_at/2"] == pytest.approx(0.375)
    assert scalars["budget/tokens_at/2/max"] == pytest.approx(0.5)
    assert scalars["budget/rows/hit"] == pytest.approx(0.125)
    assert scalars["budget/overflow/branch"] == 1
    assert scalars["budget/overflow/back"] == 5
    assert details["budget/tokens_at"] == [[0.75, 0.25], [0.5, 0.5]]
    assert details["budget/overflow"] == [[0, 2], [1, 3]]


def record() -> StepRecord:
    torch.manual_seed(0)
    network = EquilibriumLM(7, 8, 8, 2, 3, 12, warmup_steps=0)
    output = network(torch.randint(0, 7, (2, 8)))
    output = LanguageModelOutput(torch.zeros(0), torch.zeros(()), output.aux_loss.detach(), output.routing)
    return StepRecord(1, 0, True, True, 16, output, network.measures)


def test_each_watcher_finds_what_is_its_own() -> None:
    found = record()
    chosen = {
        watcher: set(watcher().select(found))
        for watcher in (EnergyBudget, RouteFractions, RunningThresholds, BankBalance)
    }
    assert chosen == {
        EnergyBudget: {"budget", "tokens_at", "rows", "overflow"},
        RouteFractions: {"route_share", "route_probability"},
        RunningThresholds: {"threshold", "threshold_offset", "deviation"},
        BankBalance: set(),
    }
    every = {name for names in chosen.values() for name in names}
    assert every == set(found.measures)
    assert not any(measure.values.requires_grad for measure in found.measures.values())


def test_a_network_is_reported_in_full() -> None:
    found = record()
    scalars, _ = EnergyBudget().report(EnergyBudget().select(found))
    shares = [scalars[f"budget/tokens_at/{units}"] for units in (1, 2, 3, 4)]
    assert sum(shares) == pytest.approx(1)
    assert scalars["budget/budget"] == pytest.approx(sum(n * share for n, share in enumerate(shares, 1)))
    scalars, _ = RouteFractions().report(RouteFractions().select(found))
    assert scalars["routes/route_share/plastic"] >= 0
    assert "routes/route_share/worst_deviation" in scalars
