import pytest
import torch

from app.records import Axis, Measure
from callbacks import RunningThresholds

LAYER, THRESHOLD = Axis("layer"), Axis("threshold", ("theta1", "theta2"))


def measures() -> dict[str, Measure]:
    cuts = torch.tensor([[0.5, 1.0], [0.7, 0.6]], dtype=torch.float64)
    return {
        "threshold": Measure(cuts, (LAYER, THRESHOLD), "threshold"),
        "offset": Measure(cuts / 100, (LAYER, THRESHOLD), "level", reduce="none", unit="deviation"),
        "deviation": Measure(torch.tensor([0.9, 1.1]), (LAYER,), "level", unit="deviation"),
    }


def test_scalars_and_details() -> None:
    scalars, details = RunningThresholds().report(measures())
    assert scalars["thresholds/threshold/theta1"] == pytest.approx(0.6)
    assert scalars["thresholds/threshold/theta2/min"] == pytest.approx(0.6)
    assert scalars["thresholds/threshold/theta2/l00"] == pytest.approx(1.0)
    assert scalars["thresholds/offset/theta2/l01"] == pytest.approx(0.006)
    assert scalars["thresholds/deviation"] == pytest.approx(1.0)
    assert scalars["thresholds/threshold/gap"] == pytest.approx(-0.1)
    assert "thresholds/offset/gap" not in scalars
    assert details["thresholds/threshold"] == [[0.5, 1.0], [0.7, 0.6]]


def test_the_running_mean_goes_on_after_a_resume() -> None:
    watcher = RunningThresholds()
    first, _ = watcher.report(measures())
    assert first["thresholds/deviation/running"] == pytest.approx(1.0)
    again = RunningThresholds()
    again.load_state_dict(watcher.state_dict())
    higher = measures() | {
        "deviation": Measure(torch.tensor([2.0, 2.0]), (LAYER,), "level", unit="deviation")
    }
    assert again.report(higher)[0]["thresholds/deviation/running"] == pytest.approx(1.1)
    assert "thresholds/threshold/running" not in first
