"""The sigmoid attention's kernels: on a GPU where there is one, in Triton's interpreter elsewhere."""

import os

import pytest
import torch
from torch import Tensor

from app.ops import use_form
from app.ops.sigmoid_attention import sigmoid_attention
from tests import tolerances
from tests.parity import relative_error

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("neither a GPU nor TRITON_INTERPRET=1", allow_module_level=True)

# (B, H, T, S, d), bias by row, straight through
CASES = [
    ((1, 2, 1, 1, 5), False, False),
    ((2, 2, 63, 63, 20), False, False),
    ((1, 3, 63, 63, 20), False, True),
    ((1, 1, 70, 101, 33), True, False),
    ((1, 1, 101, 101, 40), True, True),
    pytest.param((2, 1, 257, 257, 64), False, False, marks=pytest.mark.stress),
]


def leaves(B: int, H: int, T: int, S: int, d: int, by_row: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(T + d)

    def heads(n: int) -> Tensor:
        return torch.randn(B, n, H, d, generator=generator).transpose(1, 2).to(DEVICE).requires_grad_()

    position = torch.arange(S - T + 1, S + 1, dtype=torch.float32, device=DEVICE)
    bias = -position.log()[:, None] if by_row else torch.tensor(-3.0, device=DEVICE)
    return [heads(T), heads(S), heads(S), bias.requires_grad_()]


@pytest.mark.parametrize(("size", "by_row", "straight_through"), CASES, ids=str)
def test_kernels_equal_the_reference(
    size: tuple[int, int, int, int, int], by_row: bool, straight_through: bool
) -> None:
    given = leaves(*size, by_row)
    upstream = torch.randn(size[0], size[1], size[2], size[4], generator=torch.Generator().manual_seed(7))
    runs = []
    for form in ("naive", "triton", "triton"):
        with use_form(form):
            y = sigmoid_attention(*given, straight_through=straight_through)
        runs.append([y, *torch.autograd.grad(y, given, upstream.to(DEVICE))])
    expected, found, again = runs
    for x, wanted, second in zip(found, expected, again, strict=True):
        bound = tolerances.OUTPUT if x is found[0] else tolerances.GRADIENT
        assert relative_error(x, wanted) <= bound
        assert torch.equal(x, second)
