"""The kernels of an Equilibrium: on a GPU where there is one, in Triton's interpreter elsewhere."""

import os
from collections.abc import Iterator

import pytest
import torch

from app.bench.check_operators import compare, compute
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
