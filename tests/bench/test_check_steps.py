"""Paths of a step against the eager one: what is right passes, and each way to be wrong is found.

Without a GPU nothing can be captured; a stand-in makes a step again in place of replaying it.
"""

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from app.bench.check_steps import compared, compiled, eager, graphed
from app.bench.parity import GRADIENT
from app.bench.steps import BareStep, Subject, gradients
from app.models.gpt import GPT
from app.models.operators import called_by
from app.training.lightning_seams import optimization
from app.training.run_callbacks.graphed_steps import GraphedSteps
from app.training.step_graph import StepGraphs
from tests.training.test_step_graph import Drifts, Repeated

CPU = torch.device("cpu")
N_TOKENS = 32
FIVE = ("gpt_char", "tilelli_banks4", "equilibrium_original", "local_gpt_grape", "crystal_tuned16")


def subject(name: str) -> Subject:
    # Crystal's options name its layers, and a rank that a narrow head has not.
    network = {} if name.startswith("crystal") else {"n_layers": 1, "d_model": 24}
    return Subject(name, CPU, "32-true", {"block_size": 8, "batch_size": 4} | network)


class CapturedHere(GraphedSteps):
    """Steps in on any device."""

    capture: Any = Repeated

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module: Any = pl_module
        loop = optimization(trainer)
        self.graphs = loop.maker = StepGraphs(trainer, module, loop, capture=self.capture)


class Drifting(CapturedHere):
    capture = Drifts


@pytest.mark.parametrize("name", FIVE)
def test_a_step_made_twice_and_one_made_again_pass(name: str) -> None:
    for found in (eager(subject(name), N_TOKENS), graphed(subject(name), N_TOKENS, CapturedHere)):
        assert found.passed, found
        assert found.errors
        assert not found.skipped


def test_a_step_that_is_another_each_time_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    forward, n_calls = GPT.forward, 0

    def noisy(network: GPT, *args: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        output = forward(network, *args)
        return output._replace(loss=output.loss * (1 + 1e-6 * n_calls))

    monkeypatch.setattr(GPT, "forward", noisy)
    found = eager(subject("gpt_char"), N_TOKENS)
    assert {"loss", "tok_emb.weight"} <= set(found.wrong)


def test_a_graph_that_drifts_does_not_pass() -> None:
    found = graphed(subject("gpt_char"), N_TOKENS, Drifting)
    assert "differs after a captured step" in found.problem
    assert not found.passed


def test_a_gradient_that_is_zero_or_missing_is_wrong() -> None:
    right = {
        "loss": torch.tensor(2.0),
        "a": torch.randn(5),
        "b": torch.randn(3, 3),
        "noise": torch.full((2,), 1e-12),
    }
    assert all(error <= limit for error, limit in compared(right, right).values())
    wrong = right | {"a": torch.zeros(5), "noise": torch.zeros(2)}
    errors = compared({name: g for name, g in wrong.items() if name != "b"}, right)
    assert errors["a"] == (1.0, GRADIENT)
    assert errors["b"][0] == float("inf")
    assert errors["noise"][0] <= GRADIENT  # nothing beside the others


def test_gradients_leave_the_network_as_it_was() -> None:
    measured = subject("equilibrium_original")
    network = measured.module().network.train()
    before = {name: x.clone() for name, x in network.state_dict().items()}
    found, _ = gradients(measured, network, measured.batches(1)[0])
    assert all(torch.equal(x, before[name]) for name, x in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert "loss" in found


def test_a_bare_step_trains() -> None:
    measured = subject("tilelli_banks4")
    batch = measured.batches(1)
    step = BareStep(measured, batch)
    losses = []
    for number in range(20):
        losses.append(float(measured.losses(step.network, batch[0])[0].detach()))
        step.eager(number)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("name", ["gpt_char", "tilelli_banks4", "crystal_tuned16"])
def test_a_reference_is_where_operators_are_called(name: str) -> None:
    assert called_by(subject(name).module().network)


def test_a_network_of_pytorchs_own_parts_has_no_reference() -> None:
    network: Any = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    assert not called_by(network)


@pytest.mark.stress
@pytest.mark.parametrize("path", ["compiled_blocks", "compiled"])
@pytest.mark.parametrize("name", ["gpt_char", "tilelli_banks4"])
def test_a_compiled_step_passes(name: str, path: Any) -> None:
    found = compiled(subject(name), N_TOKENS, path)
    assert found.passed, found
