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

# (B, H, T, S, d), bias by row, straight through, dropout
CASES = [
    ((1, 2, 1, 1, 5), False, False, 0.0),
    ((2, 2, 63, 63, 20), False, False, 0.0),
    ((1, 3, 63, 63, 20), False, True, 0.2),
    ((2, 2, 40, 71, 33), True, False, 0.9),
    ((1, 1, 101, 101, 40), True, True, 0.0),
    pytest.param((2, 3, 130, 257, 64), True, False, 0.2, marks=pytest.mark.stress),
    pytest.param((2, 1, 257, 257, 64), False, False, 0.0, marks=pytest.mark.stress),
]


def leaves(B: int, H: int, T: int, S: int, d: int, by_row: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(T + d)

    def heads(n: int) -> Tensor:
        return torch.randn(B, n, H, d, generator=generator).transpose(1, 2).to(DEVICE).requires_grad_()

    position = torch.arange(S - T + 1, S + 1, dtype=torch.float32, device=DEVICE)
    bias = -position.log()[:, None] if by_row else torch.tensor(-3.0, device=DEVICE)
    return [heads(T), heads(S), heads(S), bias.requires_grad_()]


@pytest.mark.parametrize(("size", "by_row", "straight_through", "dropout"), CASES, ids=str)
def test_kernels_equal_the_reference(
    size: tuple[int, int, int, int, int], by_row: bool, straight_through: bool, dropout: float
) -> None:
    given = leaves(*size, by_row)
    upstream = torch.randn(size[0], size[1], size[2], size[4], generator=torch.Generator().manual_seed(7))
    seed = torch.tensor([size[2], -size[4]], dtype=torch.int32, device=DEVICE)
    runs = []
    for form in ("naive", "triton", "triton"):
        with use_form(form):
            y = sigmoid_attention(*given, dropout, straight_through, seed)
        runs.append([y, *torch.autograd.grad(y, given, upstream.to(DEVICE))])
    expected, found, again = runs
    for x, wanted, second in zip(found, expected, again, strict=True):
        bound = tolerances.OUTPUT if x is found[0] else tolerances.GRADIENT
        assert relative_error(x, wanted) <= bound
        assert torch.equal(x, second)


def test_every_call_drops_other_weights_and_the_generator_says_which() -> None:
    given = leaves(1, 2, 9, 9, 4, False)
    outputs = []
    for form, start in (("triton", 3), ("naive", 3), ("triton", 4)):
        torch.manual_seed(start)
        with use_form(form):
            outputs.append([sigmoid_attention(*given, 0.5) for _ in range(2)])
    first, same, other = outputs
    assert all(relative_error(x, y) <= tolerances.OUTPUT for x, y in zip(first, same, strict=True))
    assert min(relative_error(x, y) for x in first for y in (*other, first[0]) if x is not y) > 0.1
