"""The router's kernels: on a GPU where there is one, in Triton's interpreter elsewhere."""

import os

import pytest
import torch

from app.bench.check_operators import compare, compute
from app.ops.case import Draw, Size, cases

pytest.importorskip("triton")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("neither a GPU nor TRITON_INTERPRET=1", allow_module_level=True)
CASES = cases("bank_router")


@pytest.mark.parametrize("size", [Size(2, 63, 1, 1), Size(1, 300, 1, 3), Size(2, 37, 1, 8)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_the_reference_and_repeat_themselves(name: str, size: Size) -> None:
    given = CASES[name].arguments(size, Draw(3, DEVICE))
    finding = compare(name, CASES[name], given, "triton")
    assert finding.passed, finding.wrong
    first, again = (compute(CASES[name], given, "triton") for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first.outputs, again.outputs, strict=True))
    assert torch.equal(first.gradients["logits"], again.gradients["logits"])


def test_the_first_of_equals_and_what_is_no_number_are_chosen_as_ever() -> None:
    logits = torch.zeros(1, 3, 20, device=DEVICE)
    logits[0, 1, 6] = float("nan")
    given = {"logits": logits, "n_banks": 4}
    found, expected = (compute(CASES["bank_router"], given, form).outputs[1] for form in ("triton", "naive"))
    assert torch.equal(found, expected)
