"""The original block, against recorded inputs, weights, outputs and gradients."""

import pytest
import torch

from app.models.tilelli import TilelliBlock
from app.ops import Form, use_form
from tests import tolerances
from tests.parity import load_fixture, relative_error

CASES = [
    "p3n2",
    "p5n1",
    "p5n1_fpattn",
    "p5n1_topk2",
    "p5n2_hadamard",
    "p5n2_lsq",
    "p5n2_perrow",
    "p5n4",
    "p5n4_fp",
    "p5n4_topk6",
]


@pytest.mark.parametrize("form", ["vectorized", "naive"])
@pytest.mark.parametrize("case", CASES)
def test_block_reproduces_the_recorded_one(case: str, form: Form) -> None:
    fixture = load_fixture(f"tilelli_block_{case}")
    recorded = fixture.tensors
    block = TilelliBlock(**fixture.case["kwargs"])
    block.load_state_dict(fixture.part("weight."))
    x = recorded["x"].requires_grad_()

    with use_form(form):
        y, routing = block(x)
        read = {name: getattr(block, name)(x) for name in ("router_weights", "router_entropy")}
    objective = (y * recorded["grad_y"]).sum() + fixture.case["aux_factor"] * routing.aux_loss
    objective.backward()

    assert torch.equal(routing.bank_index, recorded["bank_index"])
    assert relative_error(y, recorded["y"]) <= tolerances.OUTPUT
    for name in ("pathway_weights", "bank_probability", "aux_loss"):
        assert relative_error(getattr(routing, name), recorded[name]) <= tolerances.OUTPUT, name
    for name, found in read.items():
        assert relative_error(found, recorded[name]) <= tolerances.OUTPUT, name
    gradients = {"x": x.grad} | {name: p.grad for name, p in block.named_parameters()}
    assert gradients.keys() == fixture.part("grad.").keys()
    for name, gradient in gradients.items():
        assert relative_error(gradient, recorded[f"grad.{name}"]) <= tolerances.GRADIENT, name


@pytest.mark.parametrize("form", ["vectorized", "naive"])
@pytest.mark.parametrize("skip_mode", ["per_call", "per_token"])
@pytest.mark.parametrize("case", CASES)
def test_inference_reproduces_the_recorded_one(case: str, skip_mode: str, form: Form) -> None:
    fixture = load_fixture(f"tilelli_block_{case}")
    skipping = {"skip_threshold": fixture.case["skip_threshold"], "skip_mode": skip_mode}
    block = TilelliBlock(**fixture.case["kwargs"] | skipping)
    block.load_state_dict(fixture.part("weight."))
    with use_form(form):
        y = block.infer(fixture.tensors["x"])
    assert not y.requires_grad
    assert relative_error(y, fixture.tensors[f"infer_{skip_mode}"]) <= tolerances.OUTPUT
