import pytest
import torch

from app.records import Axis, Measure
from callbacks import RouteFractions

LAYER, ROUTE = Axis("layer"), Axis("route", ("skip", "full"))


def _shares(n_layers: int) -> torch.Tensor:
    skip = torch.linspace(0.1, 0.8, n_layers, dtype=torch.float64)
    return torch.stack([skip, 1 - skip], -1)


def test_scalars_of_a_shallow_network() -> None:
    scalars, details = RouteFractions().report({"route": Measure(_shares(3), (LAYER, ROUTE), "share")})
    assert scalars == pytest.approx(
        {
            "routes/route/skip": 0.45,
            "routes/route/skip/min": 0.1,
            "routes/route/skip/max": 0.8,
            "routes/route/skip/l00": 0.1,
            "routes/route/skip/l01": 0.45,
            "routes/route/skip/l02": 0.8,
            "routes/route/full": 0.55,
            "routes/route/full/min": 0.2,
            "routes/route/full/max": 0.9,
            "routes/route/full/l00": 0.9,
            "routes/route/full/l01": 0.55,
            "routes/route/full/l02": 0.2,
            "routes/route/worst_layer": 0.0,
        }
    )
    assert details == {"routes/route": _shares(3).tolist()}


def test_the_worst_layer_is_the_farthest_from_the_target() -> None:
    measure = Measure(_shares(3), (LAYER, ROUTE), "share", target=torch.tensor([0.2, 0.8]))
    scalars, _ = RouteFractions().report({"route": measure})
    assert scalars["routes/route/worst_layer"] == 2
    assert scalars["routes/route/worst_deviation"] == pytest.approx(0.6)


def test_the_worst_entropy_is_the_lowest() -> None:
    measure = Measure(torch.tensor([1.2, 0.3, 0.9]), (LAYER,), "level", unit="nats")
    scalars, _ = RouteFractions().report({"router_entropy": measure})
    assert scalars["routes/router_entropy/worst_layer"] == 1
    assert scalars["routes/router_entropy"] == pytest.approx(0.8)


def test_deep_and_wide_networks_are_capped() -> None:
    deep, _ = RouteFractions().report({"route": Measure(_shares(9), (LAYER, ROUTE), "share")})
    assert not [key for key in deep if "/l0" in key]
    assert len(deep) == 7
    wide = Measure(torch.full((2, 5, 4), 0.05), (LAYER, Axis("row"), Axis("column")), "share")
    scalars, details = RouteFractions().report({"grid": wide})
    assert set(scalars) == {"routes/grid/worst_layer"}
    assert torch.tensor(details["routes/grid"]).shape == (2, 5, 4)
