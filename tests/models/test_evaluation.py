"""An evaluation in the midst of training leaves no trace in what training moves."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from app.models import LanguageModel
from app.models.equilibrium import EquilibriumLM
from app.models.local_gpt import LocalGPT
from app.models.tilelli import TilelliLM

V, T = 7, 6
SMALL: dict[str, Any] = dict(d_model=8, n_heads=2, n_layers=2, d_ff=8, warmup_steps=0)
LAGGED: dict[str, Any] = dict(statistics="lagged", standardize=True, shared_router=False)
NETWORKS: dict[str, Callable[[], LanguageModel]] = {
    "current": lambda: EquilibriumLM(V, T, **SMALL, standardize=True),
    "lagged, sorted": lambda: EquilibriumLM(V, T, **SMALL, **LAGGED),
    "lagged, histograms": lambda: EquilibriumLM(V, T, **SMALL, **LAGGED, quantile="histogram"),
    "bank biases": lambda: TilelliLM(V, d_model=8, n_layers=2, n_banks=3, d_head=4, balance="bias"),
    "feedback": lambda: LocalGPT(
        block_size=T, vocab_size=V, n_layers=2, n_heads=2, d_model=8, method="fa", fa_grape=True
    ),
}


def train(network: LanguageModel, step: int) -> None:
    network.train()
    torch.manual_seed(step)
    network(torch.randint(0, V, (3, T)))
    network.after_optimizer_step(step)
    for total in network.step_sums():
        total.zero_()


@pytest.mark.parametrize("name", NETWORKS)
def test_buffers_stand_still_and_the_next_step_moves_them_alike(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]()
    train(network, 1)
    undisturbed = copy.deepcopy(network)
    before: list[Tensor] = [buffer.clone() for buffer in network.buffers()]  # sums of a step among them
    network.eval()
    network(torch.randint(0, V, (5, T)))
    assert all(torch.equal(a, b) for a, b in zip(before, network.buffers(), strict=True))
    train(network, 2)
    train(undisturbed, 2)
    state = network.running_state()
    assert all(torch.equal(a, b) for a, b in zip(state, undisturbed.running_state(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(before, network.buffers(), strict=True))
