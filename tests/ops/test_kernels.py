"""The forms for GPUs against the references: on a GPU as they are compiled, elsewhere through Triton's interpreter."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from app.ops import Form, use_form
from app.ops.banked_causal_conv import banked_causal_conv
from app.ops.banked_diagonal_scan import banked_diagonal_scan
from app.ops.layer_norm import layer_norm
from app.ops.pathway_mix import pathway_mix
from app.ops.ternary import learned_step_ternary, ternary
from tests import tolerances
from tests.parity import relative_error

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def unwritten_memory_holds_no_numbers() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


class Call(NamedTuple):
    """An operator and what it is called with; what takes a gradient requires one."""

    function: Callable[..., Tensor]
    given: dict[str, Any]


class Draw:
    """Random arguments, the same from the same seed."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        drawn = torch.randn(shape, generator=self.generator).to(dtype)
        return drawn.to(DEVICE).requires_grad_()

    def bank(self, B: int, T: int, N: int) -> Tensor:
        """With several banks the last one is chosen by no token."""
        return torch.randint(0, max(1, N - 1), (B, T), generator=self.generator).to(DEVICE)


def conv(B: int, T: int, D: int, N: int, K: int, dtype: torch.dtype = torch.float32) -> Call:
    draw = Draw(B + T + D + N + K)
    given = {"h": draw(B, T, D, dtype=dtype), "weight": draw(N, D, K), "bank": draw.bank(B, T, N)}
    return Call(banked_causal_conv, given)


def scan(B: int, T: int, D: int, N: int, dtype: torch.dtype = torch.float32) -> Call:
    draw = Draw(B + T + D + N)
    decay = draw(N, D).detach().tanh().requires_grad_()  # both signs
    gains = {"input_gain": draw(N, D), "output_gain": draw(N, D)}
    given = {"h": draw(B, T, D, dtype=dtype), "decay": decay, **gains, "bank": draw.bank(B, T, N)}
    return Call(banked_diagonal_scan, given)


def absmean(shape: tuple[int, ...], dim: tuple[int, ...]) -> Call:
    return Call(ternary, {"weight": Draw(len(shape))(*shape), "dim": dim})


def learned(*shape: int) -> Call:
    step = torch.linspace(0.4, 1.3, shape[0], device=DEVICE).view(-1, *(1,) * (len(shape) - 1))
    return Call(learned_step_ternary, {"weight": Draw(shape[0])(*shape), "step": step.requires_grad_()})


def mix(B: int, T: int, D: int, P: int, dtype: torch.dtype = torch.float32) -> Call:
    draw = Draw(B + T + D + P)
    return Call(
        pathway_mix,
        {"weights": draw(B, T, P), "outputs": [draw(B, T, D, dtype=dtype) for _ in range(P)]},
    )


def norm(B: int, T: int, D: int, affine: bool = True, dtype: torch.dtype = torch.float32) -> Call:
    draw = Draw(B + T + D)
    x = draw(B, T, D, dtype=dtype).detach() * 2 + 0.5
    x[:, T // 2] = 0.25  # constant rows, which get no gradient
    gain, bias = (draw(D), draw(D)) if affine else (None, None)
    return Call(layer_norm, {"x": x.requires_grad_(), "weight": gain, "bias": bias, "eps": 1e-5})


CALLS = {
    "conv: one token, fewer than taps": (conv, (2, 1, 5, 3, 6)),
    "conv: several slices": (conv, (1, 19, 40, 3, 4)),
    "conv: one bank": (conv, (2, 9, 33, 1, 5)),
    "conv: wide, banks in groups": (conv, (1, 3, 35, 7, 21)),
    "conv: one tap": (conv, (2, 5, 33, 2, 1)),
    "scan: one token": (scan, (2, 1, 5, 3)),
    "scan: odd": (scan, (1, 63, 40, 3)),
    "scan: one bank, long chunks": (scan, (2, 257, 7, 1)),
    "ternary: per bank": (absmean, ((3, 9, 7), (1, 2))),
    "ternary: all, in chunks": (absmean, ((260, 67), (0, 1))),
    "ternary: per row": (absmean, ((3, 9, 7), (-1,))),
    "lsq": (learned, (3, 9, 7)),
    "lsq: in chunks": (learned, (2, 260, 67)),
    "norm: rows that share a tile": (norm, (2, 9, 40)),
    "norm: without gain and bias": (norm, (1, 3, 520, False)),
    "mix": (mix, (2, 9, 40, 5)),
    "mix: wider than a tile": (mix, (1, 5, 520, 3)),
}
LARGER = {
    "conv: T=63": (conv, (2, 63, 40, 3, 5)),
    "conv: T=257": (conv, (2, 257, 40, 3, 5)),
    "conv: wide, banks in groups": (conv, (1, 9, 35, 7, 21)),
    "conv: wide, T=63": (conv, (1, 63, 130, 4, 21)),
    "conv: wide, T=257": (conv, (1, 257, 40, 1, 21)),
    "scan: T=257": (scan, (2, 257, 40, 3)),
    "scan: many banks": (scan, (1, 300, 40, 8)),
    "scan: narrow blocks": (scan, (1, 1100, 20, 2)),
    "norm: more tiles than programs": (norm, (1, 530, 1030)),
    "mix: many tokens": (mix, (2, 257, 96, 4)),
}
HALF = {
    "norm": (norm, (2, 9, 40, True)),
    "conv": (conv, (1, 9, 40, 3, 5)),
    "scan": (scan, (1, 40, 7, 2)),
    "mix": (mix, (2, 9, 40, 5)),
}


def leaves_of(given: dict[str, Any]) -> list[Tensor]:
    tensors = [x for value in given.values() for x in (value if isinstance(value, list) else [value])]
    return [x for x in tensors if isinstance(x, Tensor) and x.requires_grad]


def compute(call: Call, form: Form) -> list[Tensor]:
    """Output and the gradient of every argument."""
    leaves = leaves_of(call.given)
    with use_form(form):
        y = call.function(**call.given)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(7)).to(y)
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream)]


def assert_right(call: Call) -> None:
    found, again, expected = compute(call, "triton"), compute(call, "triton"), compute(call, "naive")
    assert relative_error(found[0], expected[0]) <= tolerances.OUTPUT
    for gradient, wanted in zip(found[1:], expected[1:], strict=True):
        assert gradient.dtype == wanted.dtype
        assert relative_error(gradient, wanted) <= tolerances.GRADIENT
    assert all(torch.equal(x, y) for x, y in zip(found, again, strict=True))


@pytest.mark.parametrize("case", CALLS)
def test_kernel_equals_the_reference(case: str) -> None:
    build, size = CALLS[case]
    assert_right(build(*size))


@pytest.mark.stress
@pytest.mark.parametrize("case", LARGER)
def test_kernel_equals_the_reference_at_larger_sizes(case: str) -> None:
    build, size = LARGER[case]
    assert_right(build(*size))


@pytest.mark.parametrize("case", HALF)
def test_kernel_computes_bfloat16_in_fp32(case: str) -> None:
    build, size = HALF[case]
    call, wide = build(*size, dtype=torch.bfloat16), build(*size)
    found, expected = compute(call, "triton"), compute(wide, "naive")
    assert [x.dtype for x in found[1:]] == [x.dtype for x in leaves_of(call.given)]
    for x, wanted in zip(found, expected, strict=True):
        assert relative_error(x, wanted) <= tolerances.BFLOAT16


@pytest.mark.parametrize("build", [lambda: conv(1, 9, 7, 3, 5), lambda: scan(1, 9, 7, 3)])
def test_a_starved_bank_has_gradients_of_zero(build: Callable[[], Call]) -> None:
    call = build()
    for leaf, gradient in zip(leaves_of(call.given), compute(call, "triton")[1:], strict=True):
        if leaf is not call.given["h"]:
            assert gradient[-1].eq(0).all()
            assert gradient[0].ne(0).any()


@pytest.mark.parametrize("build", [lambda: conv(2, 9, 7, 3, 5), lambda: scan(2, 9, 7, 3)])
def test_kernels_read_tensors_however_they_lie(build: Callable[[], Call]) -> None:
    """The block's banks are a column of a wider table; a sum's gradient is one number."""
    function, given = build()
    expected = compute(Call(function, given), "naive")[0]
    apart = {
        name: torch.stack([x.detach(), torch.zeros_like(x)], -1)[..., 0].requires_grad_(x.requires_grad)
        for name, x in given.items()
    }
    assert not any(x.is_contiguous() for x in apart.values())
    assert relative_error(compute(Call(function, apart), "triton")[0], expected) <= tolerances.OUTPUT
    sums = []
    for form in ("triton", "naive"):
        with use_form(form):
            sums.append(torch.autograd.grad(function(**apart).sum(), leaves_of(apart)))
    for gradient, wanted in zip(*sums, strict=True):
        assert relative_error(gradient, wanted) <= tolerances.GRADIENT


def test_ternary_kernel_rounds_half_to_even_and_keeps_what_is_no_number() -> None:
    weight = torch.tensor([0.5, -0.5, 1.5, -1.5, 0.51, -0.51, 1.99, -1.0, 0.0], device=DEVICE)
    weight[-1] = 9 - weight.abs().sum()  # mean |W| = 1
    with use_form("triton"):
        found = ternary(weight, (0,))
        assert found.tolist() == [0.0, 0.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0]
        weight[3] = float("nan")
        assert ternary(weight, (0,)).isnan().all()
        step = torch.tensor([0.0], device=DEVICE)  # in use the smallest
        assert relative_error(learned_step_ternary(weight[:3], step), 1e-5 * weight[:3].sign()) <= 1e-6
        assert learned_step_ternary(weight, step).isnan().tolist() == weight.isnan().tolist()
