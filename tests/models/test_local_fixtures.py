"""The original LocalGPT and its backward-pass parts, against recorded outputs and gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from app.models.local_gpt import (
    FrozenSubspace,
    LayerNormSurrogate,
    LocalGPT,
    LocalGPTConfig,
    LocalLinear,
    VQResidualDirection,
    gelu_ste,
    hard_top_k,
    sigmoid_ste,
    softmax_value_mix,
)
from tests import tolerances
from tests.parity import FIXTURES, Fixture, load_fixture, relative_error

CASES = sorted(path.stem for path in FIXTURES.glob("local_gpt_*.safetensors"))
OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "sigmoid_ste": sigmoid_ste,
    "gelu_ste": gelu_ste,
    "softmax_value_mix": softmax_value_mix,
    "layernorm_projected": LayerNormSurrogate("projected"),
    "layernorm_center_scale": LayerNormSurrogate("center_scale"),
}


def test_all_cases_are_here() -> None:
    assert len(CASES) == 15


@pytest.mark.parametrize("case", CASES)
def test_network_reproduces_the_recorded_one(case: str) -> None:
    fixture = load_fixture(case)
    network = LocalGPT(LocalGPTConfig(**LocalGPT.with_defaults(fixture.case["config"])))
    network.load_state_dict(fixture.part("weight."))

    output = network(fixture.tensors["idx"], fixture.tensors["targets"])
    output.loss.backward()

    assert relative_error(output.logits, fixture.tensors["logits"]) <= tolerances.OUTPUT
    assert relative_error(output.loss, fixture.tensors["loss"]) <= tolerances.OUTPUT
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert gradients.keys() == fixture.part("grad.").keys()
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert relative_error(gradient, fixture.tensors[f"grad.{name}"]) <= tolerances.GRADIENT, name


def linear(fixture: Fixture, name: str) -> LocalLinear:
    weight = fixture.tensors[f"{name}.x1"]
    method: Any = name.removeprefix("linear_")
    layer = LocalLinear(weight.shape[1], weight.shape[0], bias=False, method=method)
    constant = (
        {"feedback": fixture.tensors[f"{name}.feedback"]}
        if name == "linear_fa"
        else {"sign_scale": torch.tensor(fixture.case["sign_sym_scale"])}
    )
    layer.load_state_dict({"weight": weight} | constant)
    return layer


@pytest.mark.parametrize(
    "name", [*OPERATIONS, "hard_top_k", "frozen_subspace", "vq", "linear_fa", "linear_sign_sym"]
)
def test_operation_reproduces_the_recorded_one(name: str) -> None:
    fixture = load_fixture("local_ops")
    recorded = fixture.part(f"{name}.")
    inputs = [recorded["x0"].requires_grad_()]
    if name == "hard_top_k":
        y = hard_top_k(inputs[0], fixture.case["hard_top_k"])
    elif name == "frozen_subspace":
        subspace = FrozenSubspace(fixture.case["subspace_rank"], inputs[0].shape[-1])
        subspace.Q = recorded["Q"]
        y = subspace(inputs[0])
    elif name == "vq":
        quantiser = VQResidualDirection(*recorded["codebook"].shape)
        quantiser.codebook = recorded["codebook"]
        y = quantiser(inputs[0])
    elif name.startswith("linear_"):
        layer = linear(fixture, name)
        inputs.append(layer.weight)
        y = layer(inputs[0])
    else:
        if "x1" in recorded:
            inputs.append(recorded["x1"].requires_grad_())
        y = OPERATIONS[name](*inputs)
    y.backward(recorded["g"])

    assert relative_error(y, recorded["y"]) <= tolerances.OUTPUT
    for number, x in enumerate(inputs):
        assert x.grad is not None
        assert relative_error(x.grad, recorded[f"grad{number}"]) <= tolerances.GRADIENT, number
