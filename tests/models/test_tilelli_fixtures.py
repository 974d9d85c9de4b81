"""The original block, against recorded inputs, weights, outputs and gradients."""

import pytest
import torch

from app.models.tilelli import TilelliBlock, compute_with
from app.ops import FAST, NAIVE, Operations
from tests import tolerances
from tests.parity import load_fixture, relative_error

CASES = ["p3n2", "p5n1", "p5n4", "p5n4_fp"]


@pytest.mark.parametrize("operations", [FAST, NAIVE], ids=["fast", "naive"])
@pytest.mark.parametrize("case", CASES)
def test_block_reproduces_the_recorded_one(case: str, operations: Operations) -> None:
    fixture = load_fixture(f"tilelli_block_{case}")
    recorded = fixture.tensors
    block = compute_with(TilelliBlock(**fixture.case["kwargs"]), operations)
    block.load_state_dict(fixture.part("weight."))
    x = recorded["x"].requires_grad_()

    y, routing = block(x)
    objective = (y * recorded["grad_y"]).sum() + fixture.case["aux_factor"] * routing.aux_loss
    objective.backward()

    assert torch.equal(routing.bank_index, recorded["bank_index"])
    assert relative_error(y, recorded["y"]) <= tolerances.OUTPUT
    for name in ("pathway_weights", "bank_probability", "aux_loss"):
        assert relative_error(getattr(routing, name), recorded[name]) <= tolerances.OUTPUT, name
    for name in ("router_weights", "router_entropy"):
        assert relative_error(getattr(block, name)(x), recorded[name]) <= tolerances.OUTPUT, name
    gradients = {"x": x.grad} | {name: p.grad for name, p in block.named_parameters()}
    assert gradients.keys() == fixture.part("grad.").keys()
    for name, gradient in gradients.items():
        assert relative_error(gradient, recorded[f"grad.{name}"]) <= tolerances.GRADIENT, name
