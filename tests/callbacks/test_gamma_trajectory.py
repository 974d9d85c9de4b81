import io
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from unseen_architecture import RecordingLogger, UnseenModule, UnseenNetwork, train

from callbacks import GammaTrajectory


class Deep(UnseenNetwork):
    """Beside what trains, nine blocks whose gain grows by ``e^(0.1 L)`` over depth, and by the step."""

    def __init__(self, n_layers: int = 9) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for layer in range(n_layers):
            block = nn.Module()
            block.ln1 = nn.LayerNorm(4)
            block.fc = nn.Linear(4, 3, bias=False)
            nn.init.constant_(block.ln1.weight, float(torch.tensor(0.1 * layer).exp()))
            self.blocks.append(block)


class Growing(UnseenModule):
    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        super().optimizer_step(*arguments, **options)
        with torch.no_grad():
            for block in self.network.blocks:
                block.ln1.weight *= 1.5


def test_scales_and_fits_of_the_steps_that_are_due() -> None:
    callback = GammaTrajectory(every_n_steps=2)
    logger = train(Growing(network=Deep()), [callback], steps=5, micro_batches=2)
    assert sorted(logger.scalars) == [1, 2, 4, 5], "the first, every second and the last"
    assert list(callback.kept) == ["ln1", "fc"], "in the order of the network"
    gains = torch.tensor([0.1 * layer for layer in range(9)], dtype=torch.float64).exp() * 1.5**4
    expected = {
        "gamma/ln1": gains.mean().item(),
        "gamma/ln1/min": gains.min().item(),
        "gamma/ln1/max": gains.max().item(),
        "gamma/ln1/worst_layer": 0.0,
        "gamma/ln1/exponent": 0.1,
        "gamma/ln1/exponent_r2": 1.0,
    }
    found = {key: value for key, value in logger.scalars[4].items() if key.startswith("gamma/ln1")}
    assert found == pytest.approx(expected)
    details = logger.details[4]
    assert details["gamma/ln1"] == pytest.approx({f"l{i:02d}": gain.item() for i, gain in enumerate(gains)})
    assert details["gamma/ln1/fits"]["best"] == "exponential"
    assert set(details["gamma/ln1/fits"]["parameters"]["piecewise"]) == {"split", "a1", "b1", "a2", "b2"}
    assert "gamma/fc" in logger.scalars[4]


def test_only_the_families_that_are_named() -> None:
    callback = GammaTrajectory(families=["ln1"])
    logger = train(UnseenModule(network=Deep(3)), [callback])
    assert {key.split("/")[1] for key in logger.scalars[1]} == {"ln1"}
    assert "gamma/ln1/l02" in logger.scalars[1], "few layers have a scalar each"
    assert "gamma/ln1/exponent" not in logger.scalars[1], "too few to fit"


@pytest.mark.parametrize(("network", "families"), [(Deep(2), ["ln9"]), (UnseenNetwork(), None)])
def test_nothing_to_follow_is_said(network: nn.Module, families: list[str] | None) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        logger = train(UnseenModule(network=network), [GammaTrajectory(families=families)], steps=2)
    assert len([w for w in caught if "GammaTrajectory: this network has no" in str(w.message)]) == 1
    assert not logger.scalars


def test_one_picture_over_a_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures: list[tuple[str, bytes, int]] = []
    monkeypatch.setattr(
        RecordingLogger, "log_figure", lambda self, *given: pictures.append(given), raising=False
    )
    whole, first, second = (GammaTrajectory(every_n_steps=1) for _ in range(3))
    train(Growing(network=Deep()), [whole], steps=4, limit_val_batches=1, val_check_interval=4)
    ((name, png, step),) = pictures
    assert (name, step) == ("gamma/families", 4)
    assert png.startswith(b"\x89PNG")
    states = {}
    for steps, callback in ((2, first), (4, second)):
        torch.manual_seed(0)
        train(Growing(network=Deep()), [callback], steps=steps)
        file = io.BytesIO()
        torch.save(callback.state_dict(), file)
        file.seek(0)
        states[steps] = torch.load(file, weights_only=True)
    resumed = GammaTrajectory()
    resumed.load_state_dict(states[2])
    _, numbers = resumed.kept["ln1"]
    for step, values in zip((3, 4), second.kept["ln1"][1].values.T[2:], strict=True):
        numbers.add(step, values)
    assert numbers.steps == second.kept["ln1"][1].steps == [1, 2, 3, 4]
    assert (numbers.values == second.kept["ln1"][1].values).all()


def test_one_transfer_per_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: reads.append(tensor.numel()) or cpu(tensor))
    train(UnseenModule(network=Deep()), [GammaTrajectory(every_n_steps=3)], steps=4)
    assert [numel for numel in reads if numel == 18] == [18, 18, 18]


@pytest.mark.parametrize(("argument", "value"), [("every_n_steps", 0), ("families", [])])
def test_arguments_out_of_range_are_named(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=argument):
        GammaTrajectory(**{argument: value})
