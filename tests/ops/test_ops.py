"""Every operator: the fast form against the reference, and the reference against finite differences."""

from typing import Any

import pytest
import torch
from torch import Tensor

from app.bench.check_operators import check_case, check_sizes, compare, compute
from app.bench.report import check_lines
from app.ops import Form, use_form
from app.ops.banked_causal_conv import banked_causal_conv
from app.ops.banked_causal_conv import vectorized as conv
from app.ops.banked_diagonal_scan import banked_diagonal_scan
from app.ops.banked_diagonal_scan import vectorized as scan
from app.ops.banked_sparse_attention import banked_sparse_attention
from app.ops.banked_sparse_attention import vectorized as attention
from app.ops.banked_sparse_attention.selection import largest_first
from app.ops.banks import (
    BankSums,
    bank_indicator,
    blocked_linear,
    blocked_outer,
    grouped_linear,
    grouped_outer,
    sort_by_bank,
)
from app.ops.case import Case, Draw, Size, all_cases
from app.ops.embedding.vectorized import Embedding, by_product, by_sorting
from app.ops.pathway_mix import pathway_mix
from app.ops.ternary import ternary
from tests import tolerances
from tests.parity import relative_error

CASES = dict(all_cases())
BANKED = {name: case for name, case in CASES.items() if {*"TN"} <= {*case.sizes}}
# A single token, widths that nothing divides, and enough tokens for several tiles, blocks and chunks.
SIZES = [
    Size(2, 1, 5, 3),
    Size(2, 37, 7, 1),
    Size(3, 37, 7, 4, n_empty=1),
    Size(1, 130, 9, 3),
    Size(2, 130, 16, 4),
]
CPU = torch.device("cpu")


def arguments(op: str, size: tuple[int, int, int, int], dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Arguments of an operator at a size (B, T, D, N); with several banks the last one is chosen by no token."""
    described = Size(*size, n_empty=min(1, size[-1] - 1), top_k=4)
    return CASES[op].arguments(described, Draw(sum(size), CPU, dtype))


def output_and_gradients(
    op: str, given: dict[str, Any], form: Form = "vectorized"
) -> tuple[Tensor, dict[str, Tensor]]:
    (y,), gradients = compute(CASES[op], given, form)
    return y, gradients


def assert_same(op: str, given: dict[str, Any]) -> None:
    finding = compare(op, CASES[op], given, "vectorized")
    assert finding.passed, finding.wrong


@pytest.mark.parametrize("op", CASES)
def test_fast_forms_equal_the_reference(op: str) -> None:
    findings = list(check_case(op, CASES[op], [*check_sizes(quick=True), *SIZES], CPU))
    assert all(finding.passed for finding in findings), "\n".join(check_lines(findings))


def test_a_gradient_whose_terms_cancel_is_compared_on_the_same_numbers() -> None:
    """The gradient of a number that is added to every entry is a sum: of 200 upstream ones, here 3.38 of a norm of 15."""
    case = Case(lambda x, bias: (x.float() + bias).to(x.dtype), lambda size, draw: {}, lambda size: 0)
    x = Draw(0, CPU, torch.bfloat16).activation(2, 100)
    given = {"x": x, "bias": torch.zeros((), requires_grad=True)}
    finding = compare("shift", case, given, "naive", torch.bfloat16)
    assert finding.errors["gradient of bias"][0] <= 1e-6


@pytest.mark.parametrize("op", BANKED)
def test_fast_form_equals_the_reference_through_small_tiles(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv, "TILE_ELEMENTS", 16 * 20)
    monkeypatch.setattr(scan, "WORTHWHILE_STEP", 1)
    monkeypatch.setattr(attention, "SCORES_PER_TILE", {"cpu": 2 * 130 * 20})
    monkeypatch.setattr(attention, "GATHERED_ELEMENTS", 4 * 16 * 50)
    assert_same(op, arguments(op, (2, 130, 16, 4)))


@pytest.mark.parametrize("op", BANKED)
def test_a_starved_bank_has_gradients_of_zero(op: str) -> None:
    given = arguments(op, (3, 37, 7, 4))
    _, gradients = output_and_gradients(op, given)
    for name, gradient in gradients.items():
        if name != "h":
            assert gradient[-1].eq(0).all(), name
            assert gradient[0].ne(0).any(), name


@pytest.mark.parametrize("op", BANKED)
def test_gradients_against_finite_differences(op: str, form: Form) -> None:
    given = arguments(op, (2, 9, 4, 3), torch.float64)
    names = [name for name, x in given.items() if isinstance(x, Tensor) and x.requires_grad]

    def function(*leaves: Tensor) -> Tensor:
        return CASES[op].function(**given | dict(zip(names, leaves, strict=True)))

    assert torch.autograd.gradcheck(function, [given[name] for name in names])


@pytest.mark.parametrize("op", BANKED)
def test_an_empty_batch_has_gradients_of_zero(op: str, form: Form) -> None:
    y, gradients = output_and_gradients(op, arguments(op, (0, 9, 7, 3)), form)
    assert y.shape == (0, 9, 7)
    assert all(gradient.eq(0).all() for gradient in gradients.values())


@pytest.mark.parametrize("first", [20, 2])  # fewer positions than top_k before the second
@pytest.mark.parametrize("op", BANKED)
def test_outputs_do_not_see_the_future(op: str, first: int) -> None:
    given = arguments(op, (2, 37, 7, 4))
    changed = given | {"h": given["h"].detach().clone()}
    changed["h"][:, first:] = float("nan")
    before, after = (CASES[op].function(**x).detach() for x in (given, changed))
    assert torch.equal(before[:, :first], after[:, :first])
    assert after[:, first:].isnan().any()


@pytest.mark.parametrize("op", BANKED)
def test_autocast_stays_within_bfloat16(op: str) -> None:
    given = arguments(op, (2, 37, 16, 4))
    if op == "banked_sparse_attention":
        given["top_k"] = 37  # rounding may change which positions are kept; with all of them it cannot
    expected, expected_gradients = output_and_gradients(op, given, "naive")
    with torch.autocast("cpu", torch.bfloat16):
        y, gradients = output_and_gradients(op, given)
    assert relative_error(y.float(), expected) <= tolerances.BFLOAT16
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32
        assert relative_error(gradient, expected_gradients[name]) <= 3 * tolerances.BFLOAT16, name


def test_convolution_of_bfloat16_inputs_rounds_once() -> None:
    """Taps and tokens are summed in fp32: every number is as near as its format has one."""
    given = arguments("banked_causal_conv.local", (2, 130, 7, 4))
    given["weight"] = torch.randn(4, 7, 21, generator=torch.Generator().manual_seed(1))
    rounded = {name: x.bfloat16() if x.is_floating_point() else x for name, x in given.items()}
    leaves = {name: x.detach().requires_grad_(x.is_floating_point()) for name, x in rounded.items()}
    wide = {
        name: x.detach().double().requires_grad_() if x.is_floating_point() else x
        for name, x in leaves.items()
    }
    y = banked_causal_conv(**leaves)
    with use_form("naive"):
        expected = banked_causal_conv(**wide)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).bfloat16()
    found = [y, *torch.autograd.grad(y, [leaves["h"], leaves["weight"]], upstream)]
    wanted = [
        expected,
        *torch.autograd.grad(expected, [wide["h"], wide["weight"]], upstream.double()),
    ]
    for x, exact in zip(found, wanted, strict=True):
        assert x.dtype == torch.bfloat16
        rounding = 2**-8 * exact.abs() + tolerances.OUTPUT
        assert ((x.double() - exact).abs() <= rounding).all()


def test_scan_is_the_recurrence() -> None:
    given = arguments("banked_diagonal_scan", (2, 37, 7, 4))
    h, a, b, c = (given[name].detach() for name in ("h", "decay", "input_gain", "output_gain"))
    state = torch.zeros(2, 4, 7)
    for t in range(37):
        state = a * state + b * h[:, t, None]
        own = (c * state)[torch.arange(2), given["bank"][:, t]]
        assert relative_error(banked_diagonal_scan(**given)[:, t], own) <= tolerances.OUTPUT


def test_scan_keeps_a_fp32_state_for_bfloat16_inputs() -> None:
    given = arguments("banked_diagonal_scan", (1, 130, 7, 1))
    slow = given | {"decay": torch.full((1, 7), 0.999), "h": torch.ones(1, 130, 7)}
    with use_form("naive"):
        expected = banked_diagonal_scan(**slow)
    y = banked_diagonal_scan(**slow | {"h": slow["h"].bfloat16()})
    assert y.dtype == torch.bfloat16
    # One rounding of the output; a bf16 state would stop growing at 256 times its increment.
    assert relative_error(y.float(), expected) <= tolerances.BFLOAT16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_selection_orders_like_a_stable_sort(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(-3, 4, (50, 40), generator=generator).to(dtype) / 3  # many ties
    scores[:, 7] = -0.0
    scores[:25, 20:] = float("-inf")
    expected = scores.sort(dim=-1, descending=True, stable=True).indices
    for k in (1, 4, 32, 40):
        assert torch.equal(largest_first(scores, k), expected[:, :k])


def test_equal_scores_keep_the_lowest_positions(form: Form) -> None:
    h = torch.randn(1, 12, 4)
    zero = torch.zeros(1, 2, 4)
    given = {"h": h, "query": zero, "key": zero, "value": torch.eye(4).unsqueeze(0), "top_k": 3}
    y = banked_sparse_attention(**given, bank=torch.zeros(1, 12, dtype=torch.int64))
    for t in range(12):
        assert relative_error(y[:, t], h[:, : min(3, t + 1)].mean(1)) <= tolerances.OUTPUT


@pytest.mark.parametrize("banks", [[0, 0, 0], [2, 0, 2], [1] * 300 + [3] * 257, list(range(4)) * 97])
def test_grouped_products_at_fixed_shape(banks: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    groups = sort_by_bank(torch.tensor(banks), 4)
    x, y = (torch.randn(len(banks), n, generator=generator) for n in (5, 3))
    weight = torch.randn(4, 3, 5, generator=generator)
    expected = torch.stack([weight[bank] @ row for bank, row in zip(sorted(banks), x, strict=True)])
    outer = torch.stack([y[groups.bank == n].T @ x[groups.bank == n] for n in range(4)])
    for linear in (grouped_linear, blocked_linear):
        assert relative_error(linear(x, weight, groups), expected) <= tolerances.OUTPUT
    for product in (grouped_outer, blocked_outer):
        assert relative_error(product(y, x, groups), outer) <= tolerances.OUTPUT


class TestTernary:
    def test_rounds_half_to_even_and_clips(self, form: Form) -> None:
        # mean|W| = 1, so W/α = W: 0.5 rounds to 0, 1.5 to 2 and is clipped.
        weight = torch.tensor([0.5, -0.5, 1.5, -1.5, 0.51, -0.51, 1.99, -1.0])
        weight = torch.cat([weight, torch.tensor([8.0 + 1e-9]) - weight.abs().sum() + 1]).view(1, 9)
        assert weight.abs().mean() == 1
        expected = torch.tensor([[0.0, 0.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0]])
        assert torch.equal(ternary(weight, (0, 1)), expected)

    def test_one_scale_per_bank_and_straight_through(self, form: Form) -> None:
        weight = (torch.randn(3, 4, 5) * torch.tensor([1.0, 10.0, 0.1]).view(3, 1, 1)).requires_grad_()
        quantised = ternary(weight, (1, 2))
        for bank, trits in zip(weight.detach(), quantised.detach(), strict=True):
            scale = bank.abs().mean()
            assert relative_error(trits, scale * (bank / scale).round().clamp(-1, 1)) <= 1e-6
        upstream = torch.randn(3, 4, 5)
        quantised.backward(upstream)
        assert torch.equal(weight.grad, upstream)

    def test_zero_weights_stay_finite(self, form: Form) -> None:
        assert ternary(torch.zeros(2, 3), (0, 1)).eq(0).all()


@pytest.mark.parametrize("banks", [[0, 0, 0], [2, 0, 2], list(range(4)) * 97])
def test_sums_by_bank(banks: list[int]) -> None:
    bank = torch.tensor(banks)
    rows = torch.randn(len(banks), 5, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([rows[bank == n].sum(0) for n in range(4)])
    sorted_sums, products = (BankSums(bank, 4, rows.dtype) for _ in range(2))
    products.indicator_NS = bank_indicator(bank, 4, rows.dtype)  # what an accelerator does
    for sums in (sorted_sums, products):
        total = torch.ones(4, 5)
        sums.add_to(total, rows)
        assert relative_error(total, expected + 1) <= tolerances.OUTPUT


@pytest.mark.parametrize("shape", [(2, 37, 7), (1, 1, 5), (3, 4, 16)], ids=str)
@pytest.mark.parametrize("n_pathways", [1, 3, 5])
def test_mixture_equals_the_reference(n_pathways: int, shape: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(*shape[:2], n_pathways, generator=generator).requires_grad_()
    outputs = [torch.randn(shape, generator=generator).requires_grad_() for _ in range(n_pathways)]
    upstream = torch.randn(shape, generator=generator)
    found = pathway_mix(weights, outputs)
    with use_form("naive"):
        expected = pathway_mix(weights, outputs)
    assert relative_error(found, expected) <= tolerances.OUTPUT
    leaves = [weights, *outputs]
    gradients, expected_gradients = (torch.autograd.grad(y, leaves, upstream) for y in (found, expected))
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert relative_error(gradient, wanted) <= tolerances.GRADIENT


def test_mixture_of_several_formats() -> None:
    weights = torch.rand(2, 5, 3, requires_grad=True)
    wide = [torch.randn(2, 5, 8) for _ in range(3)]
    outputs = [wide[0].requires_grad_(), *(x.bfloat16().requires_grad_() for x in wide[1:])]
    y = pathway_mix(weights, outputs)
    assert y.dtype == torch.float32
    with use_form("naive"):
        expected = pathway_mix(weights, outputs)
    assert relative_error(y, expected) <= tolerances.OUTPUT
    y.sum().backward()
    assert [x.grad.dtype for x in outputs] == [torch.float32, torch.bfloat16, torch.bfloat16]
    assert relative_error(outputs[1].grad.float(), weights[..., 1:2].expand(2, 5, 8)) <= tolerances.BFLOAT16


def test_mixture_against_finite_differences(form: Form) -> None:
    leaves = [
        torch.randn(2, 3, 2, dtype=torch.float64),
        *(torch.randn(2, 3, 4, dtype=torch.float64) for _ in "ab"),
    ]
    for leaf in leaves:
        leaf.requires_grad_()
    assert torch.autograd.gradcheck(lambda w, *y: pathway_mix(w, y), leaves)


@pytest.mark.parametrize("add_up", [by_product, by_sorting])
def test_gradients_of_an_embedding_are_added_up(add_up: Any) -> None:
    """As on a GPU; rows of no token, the first and the last one among them, get zeros."""
    generator = torch.Generator().manual_seed(1)
    idx = torch.randint(1, 6, (37,), generator=generator)
    gradient = torch.randn(37, 5, generator=generator)
    expected = torch.zeros(8, 5, dtype=torch.float64).index_add_(0, idx, gradient.double())
    assert relative_error(add_up(idx, gradient, 8), expected) < tolerances.OUTPUT
    weight = torch.randn(8, 5, requires_grad=True)
    y = Embedding.apply(idx, weight)
    assert torch.equal(y, weight[idx])
    (found,) = torch.autograd.grad(y, weight, gradient)
    assert relative_error(found, expected) < tolerances.OUTPUT
