"""The kernels of an Equilibrium: on a GPU where there is one, in Triton's interpreter elsewhere."""

import os
from collections.abc import Iterator

import pytest
import torch

from app.bench.check_operators import compare, compute
from app.models.equilibrium import EquilibriumLM
from app.ops import use_form
from app.ops.case import Arguments, Draw, Size, cases
from app.ops.histogram.naive import histogram

pytest.importorskip("triton")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("neither a GPU nor TRITON_INTERPRET=1", allow_module_level=True)

CASES = {
    name: case
    for op in ("depth_attention", "deviation", "histogram", "routing", "second_pass")
    for name, case in cases(op).items()
}
SMALL = Size(1, 5, 40)
# Of kernels that others of the table run too.
ALIKE = {"second_pass.all", "second_pass.none", "routing.centres_pushed"}
NAMES = [pytest.param(name, marks=pytest.mark.stress) if name in ALIKE else name for name in CASES]
LARGER = [Size(2, 1, 5), Size(2, 257, 40), Size(2, 63, 384), Size(1, 1300, 20)]


@pytest.fixture(autouse=True)
def unwritten_memory_holds_no_numbers() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def arguments(name: str, size: Size, dtype: torch.dtype = torch.float32) -> Arguments:
    given = CASES[name].arguments(size, Draw(3, DEVICE, dtype))
    if name == "histogram_quantiles":  # the interpreter takes its time by the row
        given["counts"] = given["counts"][:1]
    return given


@pytest.mark.parametrize("name", NAMES)
def test_kernels_equal_the_reference_and_repeat_themselves(name: str) -> None:
    given = arguments(name, SMALL)
    finding = compare(name, CASES[name], given, "triton")
    assert finding.passed, finding.wrong
    if name != "histogram_quantiles":
        first, again = (compute(CASES[name], given, "triton") for _ in range(2))
        assert all(torch.equal(x, y) for x, y in zip(first.outputs, again.outputs, strict=True))
        assert all(torch.equal(x, again.gradients[leaf]) for leaf, x in first.gradients.items())


@pytest.mark.stress
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", LARGER, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_the_reference_at_other_sizes(name: str, size: Size, dtype: torch.dtype) -> None:
    finding = compare(name, CASES[name], arguments(name, size, dtype), "triton", dtype)
    assert finding.passed, finding.wrong


def test_no_gradient_goes_into_a_token_that_is_the_mean() -> None:
    given = CASES["deviation"].arguments(SMALL, Draw(5, DEVICE))
    with torch.no_grad():
        given["x"][:, 0] = given["mean"]
    gradient = compute(CASES["deviation"], given, "triton").gradients["x"]
    assert gradient[:, 0].eq(0).all()
    assert gradient[:, 1:].ne(0).all()


def test_values_that_are_no_numbers_are_counted_as_ever() -> None:
    strange = torch.tensor([[float("nan"), float("inf"), -float("inf"), -1.0, 4.0, 1e30]], device=DEVICE)
    given = {"values": strange, "low": 0.0, "high": 4.0}
    found, expected = (compute(CASES["histogram"], given, form).outputs[0] for form in ("triton", "naive"))
    assert torch.equal(found, expected)
    assert found.sum() == 6


def test_a_value_beyond_the_last_bin_lands_in_it_in_bf16_too() -> None:
    counts = histogram(torch.tensor([[100.0, 4.0, -5.0]], dtype=torch.bfloat16), 0.0, 4.0)
    assert counts[0, -1] == 2
    assert counts[0, 0] == 1


@pytest.mark.parametrize("has_context", [True, False], ids=["context", "alone"])
def test_a_network_whose_takers_are_computed_alone_equals_the_one_that_computes_all(
    has_context: bool,
) -> None:
    torch.manual_seed(0)
    network = EquilibriumLM(
        11, 9, 16, 2, 3, 24, 0.0, statistics="lagged", warmup_steps=0, route_choice="random",
        reprocess_context=has_context, target_fractions=(0.3, 0.1, 0.4, 0.2),
    ).to(DEVICE)  # fmt: skip
    idx = torch.arange(18, device=DEVICE).view(2, 9) % 11
    found = {}
    for form in ("naive", "triton"):
        network.zero_grad()
        with use_form(form):
            output = network(idx, (idx + 1) % 11)
            assert network.blocks[0].packs(torch.zeros(2, 9, 16, device=DEVICE), 1) == (form == "triton")
            (output.loss + output.aux_loss).backward()
        found[form] = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    assert all((record.route == 2).any() for record in output.routing[1:])
    assert found["naive"].keys() == found["triton"].keys()
    for name, expected in found["naive"].items():
        torch.testing.assert_close(found["triton"][name], expected, rtol=1e-3, atol=1e-6, msg=name)


def test_a_block_that_somebody_has_changed_computes_as_it_was_changed() -> None:
    network = EquilibriumLM(11, 9, 16, 2, 2, 24, 0.0, statistics="lagged").to(DEVICE)
    x = torch.zeros(1, 9, 16, device=DEVICE)
    with use_form("triton"):
        assert network.blocks[0].packs(x, 1)
        handle = network.blocks[0].attn.q_proj.register_forward_hook(lambda *_: None)
        assert not network.blocks[0].packs(x, 1)
        handle.remove()
        network.blocks[0].attn.v_proj = torch.nn.Sequential(network.blocks[0].attn.v_proj)
        assert not network.blocks[0].packs(x, 1)
