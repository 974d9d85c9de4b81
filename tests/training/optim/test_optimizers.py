"""The gate between gradient and update, with every optimizer."""

from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from app.models.gpt import GPT
from app.training.language_model import LanguageModelModule
from app.training.run_callbacks.nonfinite import nonfinite_mask


def steps(optimizer_name: Literal["adamw", "sgd", "muon"], norms: list[float], mode: Any) -> list[Tensor]:
    """Weights after one update per norm; a step whose norm is not finite also has such gradients."""
    torch.manual_seed(0)
    module = LanguageModelModule(GPT(5, 4, 1, 1, 4), optimizer=optimizer_name, nonfinite=mode)
    optimizer = module.make_optimizer()
    generator = torch.Generator().manual_seed(1)
    for step, norm in enumerate(norms, start=1):
        for parameter in module.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            if norm != norm or norm == float("inf"):
                parameter.grad.fill_(norm)
                generator.manual_seed(1)  # the next good step has the gradients that this one would have had
        module.gate.update(optimizer, torch.tensor(norm), step)
        optimizer.step()
    return [parameter.detach().clone() for parameter in module.parameters()]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize("norm", [float("nan"), float("inf")])
def test_a_skipped_first_step_leaves_no_trace(
    optimizer: Literal["adamw", "sgd", "muon"], norm: float
) -> None:
    clean = steps(optimizer, [1.0], "skip")
    skipped = steps(optimizer, [norm, 1.0], "skip")
    assert all(torch.equal(a, b) for a, b in zip(clean, skipped, strict=True))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_a_shut_gate_stays_shut(optimizer: Literal["adamw", "sgd", "muon"]) -> None:
    clean = steps(optimizer, [1.0], "stop")
    stopped = steps(optimizer, [1.0, float("nan"), 1.0, 1.0], "stop")
    assert all(torch.equal(a, b) for a, b in zip(clean, stopped, strict=True))


def test_poison_changes_no_finite_loss_and_spreads_any_other() -> None:
    x = torch.tensor(1.234567, requires_grad=True)
    nonfinite_mask(x * 3).backward()
    assert torch.equal(nonfinite_mask(x.detach() * 3), x.detach() * 3)
    assert x.grad is not None
    assert x.grad.item() == 3.0
    y = torch.tensor(2.0, requires_grad=True)
    nonfinite_mask(y + float("inf")).backward()
    assert y.grad is not None
    assert y.grad.isnan()
