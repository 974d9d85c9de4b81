"""What fits of another run's weights, what starts anew, and what is said of it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from app.models.equilibrium import EquilibriumLM
from app.models.gpt import GPT
from app.models.tilelli import TilelliLM
from app.run.errors import ConfigurationError
from app.training.first_weights import take_weights
from app.training.language_model import LanguageModelModule

V, T = 7, 6


def tilelli(**options: Any) -> LanguageModelModule:
    return LanguageModelModule(TilelliLM(V, d_model=8, n_layers=2, n_banks=2, d_head=4, **options))


def equilibrium(**options: Any) -> LanguageModelModule:
    return LanguageModelModule(
        EquilibriumLM(V, T, d_model=8, n_heads=2, n_layers=2, d_ff=8, warmup_steps=0, **options)
    )


def trained(module: LanguageModelModule) -> dict[str, Tensor]:
    """Its state after a step in which everything moved."""
    network = module.network
    network(torch.randint(0, V, (3, T)))
    network.after_optimizer_step(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1)
    return module.state_dict()


def test_a_bias_of_banks_that_the_other_run_had_none_of_starts_at_zero() -> None:
    weights = trained(tilelli())
    module = tilelli(balance="bias")
    assert take_weights(module, weights, "--init_from other") == [
        "--init_from other: holds no blocks.*.router_bias, which starts at 0"
    ]
    state = module.state_dict()
    assert all(torch.equal(state[name], x) for name, x in weights.items())
    assert state.keys() - weights.keys() == {f"network.blocks.{i}.router_bias" for i in range(2)}
    assert not any(state[name].any() for name in state.keys() - weights.keys())


def test_and_one_that_this_run_has_no_place_for_is_left_out() -> None:
    weights = trained(tilelli(balance="bias"))
    assert weights["network.blocks.0.router_bias"].any()
    module = tilelli()
    assert take_weights(module, weights, "--init_from other") == [
        "--init_from other: holds blocks.*.router_bias, which this network does without"
    ]
    assert all(torch.equal(x, weights[name]) for name, x in module.state_dict().items())


def test_a_bias_that_both_have_is_taken() -> None:
    weights = trained(tilelli(balance="bias"))
    module = tilelli(balance="bias")
    assert take_weights(module, weights, "--init_from other") == []
    assert all(torch.equal(x, weights[name]) for name, x in module.state_dict().items())


def test_thresholds_on_another_scale_start_anew() -> None:
    raw, standardized = trained(equilibrium()), trained(equilibrium(standardize=True))
    module = equilibrium(standardize=True)
    fresh = module.state_dict()["network.routers.0.running_thresholds"].clone()
    assert take_weights(module, raw, "X") == [
        "X: holds no routers.0.num_batches_tracked, which starts at 0",
        "X: holds no routers.0.running_thresholds, which starts as in a new run",
        "X: holds no signals.*.deviation_mean, which starts at 1",
        "X: holds no signals.*.deviation_var, which starts at 0.0625",
    ]
    assert torch.equal(module.state_dict()["network.routers.0.running_thresholds"], fresh)
    module = equilibrium()
    said = take_weights(module, standardized, "X")
    assert "X: holds signals.*.deviation_mean, which this network does without" in said
    assert take_weights(equilibrium(), raw, "X") == []
    assert not torch.equal(raw["network.routers.0.running_thresholds"], torch.tensor([0.75, 1.0, 1.35]))


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_weights_that_do_not_fit_are_refused_and_nothing_is_taken(change: str) -> None:
    weights = trained(tilelli())
    if change == "missing":
        del weights["network.blocks.1.norm.weight"]
        said = r"blocks.1.norm.weight is None there and \(8,\) here \(1 tensors differ\)"
    elif change == "unknown":
        weights["network.blocks.1.other"] = torch.zeros(2)
        said = r"blocks.1.other is \(2,\) there and None here"
    else:
        weights["network.head.weight"] = torch.zeros(V + 1, 8)
        said = r"head.weight is \(8, 8\) there and \(7, 8\) here"
    module = tilelli(balance="bias")
    before = {name: x.clone() for name, x in module.state_dict().items()}
    with pytest.raises(ConfigurationError, match=f"--init_from other: the weights do not fit.*{said}"):
        take_weights(module, weights, "--init_from other")
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())


def test_another_architecture_is_refused() -> None:
    weights = LanguageModelModule(GPT(V, T, 1, 2, 8)).state_dict()
    with pytest.raises(ConfigurationError, match="the weights do not fit this network"):
        take_weights(tilelli(), weights, "X")
