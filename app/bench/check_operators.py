"""Every form of every operator against its reference: outputs and all gradients, at odd sizes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from app.bench.parity import (
    BFLOAT16,
    GRADIENT,
    NEAR_TIE,
    NEAR_TIE_BFLOAT16,
    OUTPUT,
    any_order,
    exact_products,
    relative_error,
)
from app.bench.report import Finding
from app.ops import Form, use_form
from app.ops.case import Arguments, Case, Draw, Size, tensors_of, with_tensors
from app.ops.choice import entry
from app.run.errors import words_of

TIMES, WIDTHS, BANKS = (1, 63, 257, 1000), (40, 384), (1, 3, 8)
DTYPES = (torch.float32, torch.bfloat16)
WINDOWS = 2
UPSTREAM_SEED = 7


class Computed(NamedTuple):
    """What a form gives.

    Attributes:
        outputs: every tensor that it returns.
        gradients: of every argument that gets one, by name, under random upstream gradients.
    """

    outputs: list[Tensor]
    gradients: dict[str, Tensor]


class Call(NamedTuple):
    """A call of an operator by one of its forms.

    Attributes:
        name: of the case.
        form: that is compared with the reference.
        dtype: fp32, or bf16 under autocast.
        number: of the size among those of the case, from which the arguments are drawn.
        size: of the call.
    """

    name: str
    form: Form
    dtype: torch.dtype
    number: int
    size: Size


def check_sizes(quick: bool = False) -> list[Size]:
    """Odd ones in every direction; then an empty bank, all banks but one empty, and more kept positions than tokens.

    Args:
        quick: a few small ones.
    """
    times, widths, banks = (TIMES[:2], WIDTHS[:1], BANKS[:2]) if quick else (TIMES, WIDTHS, BANKS)
    sizes = [Size(WINDOWS, T, D, N) for T in times for D in widths for N in banks]
    T, D, N = times[-2], widths[0], banks[-1]
    return [
        *sizes,
        Size(WINDOWS, T, D, N, n_empty=1),
        Size(WINDOWS, T, D, N, n_empty=N - 1),
        Size(WINDOWS, times[1], D, N, top_k=times[1] + 9),
    ]


def of_case(sizes: Sequence[Size], case: Case) -> list[Size]:
    """Those of the sizes that are calls of their own to an operator, which need not depend on all of a size."""
    different: dict[Any, Size] = {}
    for size in sizes:
        given = {"B": size.B, "T": size.T, "D": size.D, "N": (size.N, size.n_empty)}
        key = (*(given[letter] for letter in case.sizes), size.top_k if case.near_ties else 0)
        different.setdefault(key, size)
    return list(different.values())


def check_case(
    name: str, case: Case, sizes: Sequence[Size], device: torch.device, dtypes: Sequence[torch.dtype] = DTYPES
) -> Iterator[Finding]:
    """Each form of an operator but the reference, at each size and in each number format.

    Args:
        name: of the case.
        case: the operator.
        sizes: of the calls.
        device: where it computes.
        dtypes: fp32, and bf16 under autocast.
    """
    for call in calls_of(name, case, sizes, device, dtypes):
        yield check_call(case, call, device)


def calls_of(
    name: str, case: Case, sizes: Sequence[Size], device: torch.device, dtypes: Sequence[torch.dtype] = DTYPES
) -> Iterator[Call]:
    """The calls of :func:`check_case`, in its order."""
    for form in case.forms(device):
        if form != "naive":
            for dtype in dtypes:
                for number, size in enumerate(of_case(sizes, case)):
                    yield Call(name, form, dtype, number, size)


def check_call(case: Case, call: Call, device: torch.device) -> Finding:
    """What a call gives, against the reference.

    Args:
        case: the operator.
        call: one of :func:`calls_of`.
        device: where it computes.
    """
    where = _words(call.size, case, call.dtype)
    given = case.arguments(call.size, Draw(call.number, device, call.dtype))
    try:
        return compare(call.name, case, given, call.form, call.dtype, where)
    except Exception as error:  # whatever a form raises, or its compiler, is the finding
        return _finding(call.name, case, call.form, where, problem=words_of(error))


def compare(
    name: str, case: Case, given: Arguments, form: Form, dtype: torch.dtype = torch.float32, where: str = ""
) -> Finding:
    """One call by a form and by the reference in fp32, on the same numbers.

    Decisions that rounding may turn are counted and left out of the comparison: their outputs are not compared, and
    they pass no gradient on.

    Args:
        name: of the case.
        case: the operator.
        given: its arguments.
        form: that is compared with ``naive``.
        dtype: bf16 computes the form under autocast.
        where: the call, in words.
    """
    is_rounded = dtype == torch.bfloat16
    margin = NEAR_TIE_BFLOAT16 if is_rounded and not case.decides_in_fp32 else NEAR_TIE
    ties = case.near_ties(given, margin) if case.near_ties else None
    device = tensors_of(given)[0].device
    autocast = torch.autocast(device.type, torch.bfloat16) if is_rounded else nullcontext()
    with exact_products(), any_order():
        with autocast:
            found = compute(case, given, form, ties, dtype)
        wide = with_tensors(given, _widened)
        expected = compute(case, wide, "naive", ties, dtype)
    errors = {
        f"output {index}" if len(found.outputs) > 1 else "output": (
            relative_error(_decided(y, ties), _decided(wanted, ties)),
            BFLOAT16 if is_rounded else OUTPUT,
        )
        for index, (y, wanted) in enumerate(zip(found.outputs, expected.outputs, strict=True))
    }
    for argument, gradient in found.gradients.items():
        limit = BFLOAT16 if is_rounded else GRADIENT
        errors[f"gradient of {argument}"] = (relative_error(gradient, expected.gradients[argument]), limit)
    n_near_ties = 0 if ties is None else int(ties.sum())
    return _finding(name, case, form, where, errors=errors, n_near_ties=n_near_ties)


def compute(
    case: Case,
    given: Arguments,
    form: Form,
    ties: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Computed:
    """Outputs and gradients of a call, by a form.

    Args:
        case: the operator.
        given: its arguments; those that require a gradient get one.
        form: that computes it.
        ties: where upstream gradients are zero, in the shape of the first axes of the outputs.
        dtype: the upstream gradients hold numbers that this format has, whatever the outputs are in. A form gets them
            in the format of its output; rounded there alone, they would be other ones than the reference gets, and a
            gradient whose terms cancel, such as that of one number that is added to every score, tell that apart.
    """
    with use_form(form):
        outputs = tensors_of(case.function(**given))
    generator = torch.Generator("cpu").manual_seed(UPSTREAM_SEED)
    learnt = [y for y in outputs if y.requires_grad]
    upstream = [
        torch.randn(y.shape, generator=generator, dtype=torch.float64).to(dtype).to(y) for y in learnt
    ]
    if ties is not None:
        upstream = [g.masked_fill(_over(ties, g), 0.0) for g in upstream]
    leaves = _leaves(given)
    if not leaves:
        return Computed(outputs, {})
    # An argument that the output does not depend on gets zeros, in every form.
    gradients = torch.autograd.grad(
        learnt, list(leaves.values()), upstream, allow_unused=True, materialize_grads=True
    )
    return Computed(outputs, dict(zip(leaves, gradients, strict=True)))


def _finding(name: str, case: Case, form: Form, where: str, **found: Any) -> Finding:
    return Finding(f"{name} {form}", where, path=form, subject=entry(case.function.__module__, form), **found)


def _leaves(given: Mapping[str, Any]) -> dict[str, Tensor]:
    leaves: dict[str, Tensor] = {}
    for name, value in given.items():
        tensors = [x for x in tensors_of(value) if x.requires_grad]
        several = len(tensors_of(value)) > 1
        leaves |= {f"{name} {i}" if several else name: x for i, x in enumerate(tensors)}
    return leaves


def _widened(x: Tensor) -> Tensor:
    if not x.is_floating_point():
        return x
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.detach().to(wide).requires_grad_(x.requires_grad)


def _over(ties: Tensor, y: Tensor) -> Tensor:
    return ties.view(*ties.shape, *[1] * (y.dim() - ties.dim()))


def _decided(y: Tensor, ties: Tensor | None) -> Tensor:
    return y if ties is None else y.masked_fill(_over(ties, y), 0)


def _words(size: Size, case: Case, dtype: torch.dtype) -> str:
    words = [f"{letter}={getattr(size, letter)}" for letter in "TDN" if letter in case.sizes]
    if size.n_empty and "N" in case.sizes:
        words.append(f"{size.n_empty} empty")
    if size.top_k > size.T and case.near_ties and "T" in case.sizes:
        words.append(f"k={size.top_k}")
    return " ".join([*words, "bf16" if dtype == torch.bfloat16 else "fp32"])
