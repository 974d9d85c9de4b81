import pytest
import torch

from app.records import Axis, Measure
from callbacks import BankBalance

LAYER, PATHWAY, BANK = Axis("layer"), Axis("pathway", ("local", "dense")), Axis("bank")
AUXILIARY = {"aux_loss": Measure(torch.tensor(0.02, dtype=torch.float64), (), "level", unit="nats")}


def _load(values: list) -> Measure:
    return Measure(torch.tensor(values, dtype=torch.float64), (LAYER, PATHWAY, BANK), "count", reduce="sum")


def _probability(values: torch.Tensor) -> Measure:
    return Measure(values, (LAYER, PATHWAY, BANK), "share", target=torch.tensor(1 / values[0].numel()))


def test_even_banks() -> None:
    scalars, _ = BankBalance().report(
        AUXILIARY | {"load": _load([[[3, 3], [3, 3]]]), "p": _probability(torch.full((1, 2, 2), 0.25))}
    )
    assert scalars["balance/excess"] == 0
    assert scalars["balance/max_over_mean_load"] == 1
    assert scalars["balance/dead_banks"] == 0
    assert scalars["balance/aux_loss"] == pytest.approx(0.02)


def test_load_per_pathway_and_layer() -> None:
    scalars, details = BankBalance().report(AUXILIARY | {"load": _load([[[6, 0], [3, 3]], [[4, 2], [0, 0]]])})
    expected = {
        "balance/max_over_mean_load": (2 + 1 + 4 / 3 + 1) / 4,
        "balance/max_over_mean_load/min": (4 / 3 + 1) / 2,
        "balance/max_over_mean_load/max": 1.5,
        "balance/max_over_mean_load/l00": 1.5,
        "balance/max_over_mean_load/l01": (4 / 3 + 1) / 2,
        "balance/max_over_mean_load/worst_layer": 0,
        "balance/max_over_mean_load/local": (2 + 4 / 3) / 2,
        "balance/max_over_mean_load/dense": 1,
        "balance/dead_banks": 3,
        "balance/dead_banks/local": 1,
        "balance/dead_banks/dense": 2,
        "balance/aux_loss": 0.02,
    }
    assert scalars == pytest.approx(expected)
    assert details == {"balance/load": [[[6, 0], [3, 3]], [[4, 2], [0, 0]]]}


def test_excess_is_the_mean_squared_relative_deviation() -> None:
    probability = torch.softmax(
        torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0)).flatten(1), -1
    )
    probability = probability.reshape(3, 2, 4).double()
    scalars, _ = BankBalance().report(AUXILIARY | {"p": _probability(probability)})
    by_layer = (8 * probability - 1).square().mean((1, 2))
    assert scalars["balance/excess"] == pytest.approx(by_layer.mean().item())
    assert scalars["balance/excess/worst_layer"] == by_layer.argmax().item()
    assert scalars["balance/excess/local"] == pytest.approx(
        (8 * probability[:, 0] - 1).square().mean().item()
    )


def test_banks_without_pathways_or_layers_in_any_axis_order() -> None:
    load = Measure(torch.tensor([5.0, 1.0, 0.0]), (BANK,), "count", reduce="sum")
    scalars, _ = BankBalance().report(AUXILIARY | {"load": load})
    assert scalars["balance/max_over_mean_load"] == pytest.approx(2.5)
    assert scalars["balance/dead_banks"] == 1
    assert "balance/dead_banks/" not in scalars
    straight = _load([[[6, 0, 1], [3, 3, 3]]])
    turned = Measure(straight.values.transpose(1, 2), (LAYER, BANK, PATHWAY), "count", reduce="sum")
    assert (
        BankBalance().report(AUXILIARY | {"x": turned})[0]
        == BankBalance().report(AUXILIARY | {"x": straight})[0]
    )


def test_two_kinds_of_banks_keep_their_names() -> None:
    first, second = _load([[[6, 0], [3, 3]]]), _load([[[1, 1], [3, 3]]])
    scalars, _ = BankBalance().report(AUXILIARY | {"attention": first, "feed_forward": second})
    assert scalars["balance/attention/dead_banks"] == 1
    assert scalars["balance/feed_forward/dead_banks"] == 0
    assert "balance/dead_banks" not in scalars
