"""Learned ternary steps and the Walsh–Hadamard transform, each form against its definition."""

import pytest
import torch
from torch import Tensor

from app.ops import Form, use_form
from app.ops.hadamard import hadamard
from app.ops.hadamard.naive import hadamard_matrix
from app.ops.ternary import learned_step_ternary, learned_step_trits, ternary, trits
from tests import tolerances
from tests.parity import relative_error


def by_hand(weight: Tensor, step: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output, gradient of the weight and gradient of the step, entry by entry."""
    quantised, d_weight = torch.zeros_like(weight), torch.zeros_like(weight)
    d_step = torch.zeros(weight.shape[0])
    for n, bank in enumerate(weight):
        s = max(step[n].item(), 1e-5)
        for i, w in enumerate(bank.flatten().tolist()):
            ratio, g = w / s, upstream[n].flatten()[i].item()
            trit = round(min(1.0, max(-1.0, ratio)))  # Python rounds halves to even, too
            quantised[n].view(-1)[i] = s * trit
            if abs(ratio) < 1:
                d_weight[n].view(-1)[i] = g
                d_step[n] += g * (trit - ratio)
            else:
                d_step[n] += g * (1 if w > 0 else -1)
        d_step[n] /= bank.numel() ** 0.5
    return quantised, d_weight, d_step


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 5), (2, 24, 9)], ids=str)
def test_learned_step_follows_its_formula(form: Form, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator)
    step = torch.linspace(0.4, 1.3, shape[0])
    weight[0, 0, 0] = step[0]  # exactly on the edge: outside
    upstream = torch.randn(shape, generator=generator)
    weight.requires_grad_()
    step.requires_grad_()
    quantised = learned_step_ternary(weight, step.view(-1, 1, 1))
    quantised.backward(upstream)
    expected, d_weight, d_step = by_hand(weight.detach(), step.detach(), upstream)
    assert relative_error(quantised, expected) <= tolerances.OUTPUT
    assert relative_error(weight.grad, d_weight) <= tolerances.GRADIENT
    assert relative_error(step.grad, d_step) <= tolerances.GRADIENT


def test_learned_step_rounds_half_to_even(form: Form) -> None:
    weight = torch.tensor([[0.5, -0.5, 0.50001, -0.50001, 1.5, -7.0, 0.0]])
    assert torch.equal(
        learned_step_ternary(weight, torch.ones(1, 1)), torch.tensor([[0.0, 0, 1, -1, 1, -1, 0]])
    )


@pytest.mark.parametrize("step", [1e-7, 0.0, -0.3])
def test_learned_step_has_a_floor_that_it_can_leave(form: Form, step: float) -> None:
    weight = torch.tensor([[3.0, -2.0]])
    s = torch.full((1, 1), step, requires_grad=True)
    quantised = learned_step_ternary(weight, s)
    assert relative_error(quantised, torch.tensor([[1e-5, -1e-5]])) <= tolerances.OUTPUT
    quantised.backward(torch.tensor([[1.0, -1.0]]))
    assert relative_error(s.grad, torch.full((1, 1), 2 / 2**0.5)) <= tolerances.GRADIENT


@pytest.mark.parametrize("dim", [(1, 2), (-1,)])
def test_trits_times_scale_is_the_quantised_weight(dim: tuple[int, ...]) -> None:
    weight = torch.randn(3, 5, 7)
    values, scale = trits(weight, dim)
    assert set(values.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert torch.equal(values * scale, ternary(weight, dim))
    assert scale.shape == ((3, 1, 1) if dim == (1, 2) else (3, 5, 1))
    step = torch.tensor([0.3, 1.0, 0.0]).view(3, 1, 1)
    values, scale = learned_step_trits(weight, step)
    assert torch.equal(values * scale, learned_step_ternary(weight, step))


@pytest.mark.parametrize(
    ("n", "block"), [(1, 1), (2, 2), (8, 8), (128, 128), (24, 8), (12, 4), (7, 1), (96, 32)]
)
def test_hadamard_matrix_is_orthonormal(n: int, block: int) -> None:
    matrix = hadamard_matrix(n)
    assert relative_error(matrix @ matrix.T, torch.eye(n)) <= 1e-12
    assert torch.equal(matrix, matrix.T)
    on_blocks = torch.block_diag(*[torch.ones(block, block)] * (n // block)).bool()
    assert torch.equal(matrix != 0, on_blocks)
    expected = torch.full((n * block,), block**-0.5, dtype=torch.float64)
    assert relative_error(matrix[on_blocks].abs(), expected) <= 1e-12


@pytest.mark.parametrize("n", [1, 2, 8, 128, 24, 12, 7, 96])
def test_hadamard_forms_agree(n: int) -> None:
    x = torch.randn(3, 5, n, requires_grad=True)
    upstream = torch.randn(3, 5, n)
    y = hadamard(x)
    with use_form("naive"):
        expected = hadamard(x)
    assert y.dtype == expected.dtype == torch.float32
    assert relative_error(y, expected) <= tolerances.OUTPUT
    (gradient,) = torch.autograd.grad(y, x, upstream)
    (expected_gradient,) = torch.autograd.grad(expected, x, upstream)
    assert relative_error(gradient, expected_gradient) <= tolerances.GRADIENT
    assert relative_error(hadamard(y), x) <= tolerances.OUTPUT
    assert relative_error(y.norm(dim=-1), x.norm(dim=-1)) <= tolerances.OUTPUT


def test_hadamard_of_an_odd_size_is_the_identity() -> None:
    x = torch.randn(2, 7)
    assert torch.equal(hadamard(x), x)


def test_hadamard_keeps_its_precision_under_autocast(form: Form) -> None:
    x = torch.randn(4, 32)
    expected = hadamard(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(hadamard(x), expected)


def test_gradients_against_finite_differences(form: Form) -> None:
    x = torch.randn(2, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(hadamard, [x])
