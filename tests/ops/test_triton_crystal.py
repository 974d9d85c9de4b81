"""The kernels of crystallised attention: on a GPU where there is one, in Triton's interpreter elsewhere."""

import os
from collections.abc import Iterator

import pytest
import torch

from app.bench.check_operators import compare, compute
from app.ops import use_form
from app.ops.case import Draw, Size, cases
from app.ops.crystal_attention import crystal_attention
from tests import tolerances
from tests.parity import relative_error

pytest.importorskip("triton")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("neither a GPU nor TRITON_INTERPRET=1", allow_module_level=True)

from tests.support.interpreted import hold_numbers  # noqa: E402

CASES = {
    name: cases("crystal_attention")[f"crystal_attention.{name}"]
    for name in ("top1", "topk", "lowrank", "learnt")
}
SMALL, FP32, BF16 = Size(1, 45, 40), torch.float32, torch.bfloat16
LARGER = [Size(2, 1, 40), Size(2, 130, 256), Size(1, 257, 384)]


@pytest.fixture(autouse=True)
def unwritten_memory_holds_no_numbers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if DEVICE.type == "cpu":
        hold_numbers(monkeypatch)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("name", "size", "dtype"),
    [
        *((name, SMALL, FP32) for name in CASES if name != "topk"),
        ("topk", SMALL._replace(top_k=3), FP32),
        ("learnt", SMALL, BF16),
        *(
            pytest.param(name, size, dtype, marks=pytest.mark.stress)
            for name in CASES
            for size in LARGER
            for dtype in (FP32, BF16)
        ),
    ],
    ids=str,
)
def test_kernels_equal_the_reference(name: str, size: Size, dtype: torch.dtype) -> None:
    finding = compare(name, CASES[name], CASES[name].arguments(size, Draw(3, DEVICE, dtype)), "triton", dtype)
    assert finding.passed, finding.wrong


def test_kernels_repeat_themselves() -> None:
    given = CASES["learnt"].arguments(Size(1, 33, 20), Draw(4, DEVICE))
    first, again = (compute(CASES["learnt"], given, "triton") for _ in range(2))
    assert torch.equal(first.outputs[0], again.outputs[0])
    assert all(torch.equal(x, again.gradients[leaf]) for leaf, x in first.gradients.items())


def test_the_last_queries_of_more_positions_and_equal_scores() -> None:
    """Of equal scores the lowest position wins, in a tile and among tiles."""
    draw = Draw(5, DEVICE)
    q, k, v = draw.normal(1, 1, 6, 8), draw.normal(1, 1, 40, 8), draw.normal(1, 1, 40, 8)
    q[:, :, 0] = 0
    found = []
    for form in ("triton", "naive"):
        with use_form(form):
            found.append(crystal_attention(q, k, v, "top1"))
    assert torch.equal(*found)
    assert torch.equal(found[0][0, 0, 0], v[0, 0, 0])


@pytest.mark.parametrize(
    "options", [{"mode": "topk", "top_k": 9}, {"mode": "full"}, {"mode": "top1", "scale": 0.3}]
)
def test_other_modes_are_what_they_were(options: dict[str, object]) -> None:
    draw = Draw(6, DEVICE)
    given = [draw.normal(1, 2, 7, 5) for _ in "qkv"]
    found = []
    for form in ("triton", "naive"):
        with use_form(form):
            found.append(crystal_attention(*given, **options))  # type: ignore[arg-type]
    assert relative_error(*found) <= tolerances.OUTPUT
