"""CrystalSpectrum watches levels of attention heads, whatever the architecture."""

from dataclasses import replace

import pytest
import torch

from app.models.crystal import CrystalGPT
from app.records import Axis, Measure, StepRecord
from callbacks import CrystalSpectrum

LAYER, HEAD = Axis("layer"), Axis("head")


def test_means_over_heads_by_layer() -> None:
    values = torch.tensor([[2.0, 4.0], [5.0, 9.0]], dtype=torch.float64)
    scalars, details = CrystalSpectrum().report(
        {"r90": Measure(values, (LAYER, HEAD), "level", unit="modes")}
    )
    assert scalars == {
        "crystal/r90": 5.0,
        "crystal/r90/min": 3.0,
        "crystal/r90/max": 7.0,
        "crystal/r90/l00": 3.0,
        "crystal/r90/l01": 7.0,
    }
    assert details == {"crystal/r90": [[2.0, 4.0], [5.0, 9.0]]}


def test_selects_by_kind_and_axes() -> None:
    torch.manual_seed(0)
    network = CrystalGPT(11, 12, n_layers=3, n_heads=2, d_model=12, rank=2, crystal_layers=[0, 2])
    output = network(torch.randint(0, 11, (2, 12)))

    def measured(output: object) -> dict[str, Measure]:
        others = {
            "lanes": Measure(torch.ones(3, 2), (LAYER, HEAD), "share"),
            "x": Measure(torch.ones(3), (LAYER,), "level"),
        }
        return {**network.measures(output), **others}  # type: ignore[arg-type]

    record = StepRecord(1, 0, True, True, 24, output, measured)
    chosen = CrystalSpectrum().select(record)
    assert set(chosen) == {"residual_r90", "attention_entropy", "top_share"}
    combined = {
        name: replace(m, values=m.derive(m.values), derive=None) if m.derive else m
        for name, m in chosen.items()
    }
    scalars, details = CrystalSpectrum().report(combined)
    assert 1 <= scalars["crystal/residual_r90/min"] <= scalars["crystal/residual_r90/max"] <= 6
    assert 0 < scalars["crystal/attention_entropy"] < torch.tensor(12.0).log()
    assert 1 / 12 < scalars["crystal/top_share"] <= 1
    assert torch.tensor(details["crystal/top_share"]).shape == (2, 2)
    layers = {key for key in scalars if key.startswith("crystal/top_share/l")}
    assert layers == {"crystal/top_share/l00", "crystal/top_share/l02"}, "the network's numbers"


def test_nothing_is_computed_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that is not logged takes references and nothing else."""
    torch.manual_seed(0)
    network = CrystalGPT(11, 12, n_layers=1, n_heads=2, d_model=12, rank=2)
    monkeypatch.setattr(type(network), "measures", lambda self, output: pytest.fail("was asked"))
    output = network(torch.randint(0, 11, (2, 12)))
    assert StepRecord(1, 0, True, False, 24, output, network.measures).output.routing
