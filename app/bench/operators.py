"""Times of an operator's forms beside its reference, against the bytes and operations that a call asks for."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from app.bench.ceilings import Ceilings
from app.bench.parity import any_order
from app.bench.timing import Timing, cache_bytes, measure, n_copies
from app.ops import Form, use_form
from app.ops.case import Arguments, Case, Draw, Size, tensors_of

#: sizes where none is asked for: those of a Tilelli of eight layers on a GPU, of one of four on the CPU
USUAL = {"cuda": Size(16, 1024, 512), "cpu": Size(8, 256, 128)}
QUICK = Size(1, 16, 8, 2)
PASSES = ("fwd", "fwd+bwd")
#: a forward in the number of forwards that a pass makes; a backward is two
FORWARDS = {"fwd": 1, "fwd+bwd": 3}


@dataclass(frozen=True)
class Row:
    """A form at a size.

    Attributes:
        case: name of the operator.
        size: of the call.
        form: which computed it.
        what: ``fwd``, without gradients, or ``fwd+bwd``.
        timing: of a call.
        n_bytes: that have to be moved: every input read and every result written, once.
        flops: that have to be made.
        copy_share: the time of a copy of as many bytes, over that of the call.
        product_share: the same with the operations of square products; None where they are no products.
        speedup: time of the reference over that of the call.
    """

    case: str
    size: Size
    form: Form
    what: str
    timing: Timing
    n_bytes: int
    flops: int
    copy_share: float
    product_share: float | None
    speedup: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        own = {name: value for name, value in vars(self).items() if name not in ("size", "timing")}
        return own | {"size": self.size._asdict()} | self.timing.as_dict()


class Calls:
    """Calls of an operator on inputs that take turns.

    Args:
        case: the operator.
        size: of the calls.
        device: where they compute.
        dtype: of activations; bf16 computes under autocast.
        quick: on two sets of inputs, whatever the cache holds.
    """

    def __init__(self, case: Case, size: Size, device: torch.device, dtype: torch.dtype, quick: bool = False):
        self.case = case
        self._autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
        if dtype == torch.bfloat16:
            self._autocast = lambda: torch.autocast(device.type, torch.bfloat16)
        first = case.arguments(size, Draw(0, device, dtype))
        with torch.no_grad():
            results = self._forward("vectorized", first)
        given = tensors_of(first)
        n_bytes, result_bytes = _bytes(given), _bytes(results)
        learnt = [x for x in given if x.requires_grad]
        self.learns = bool(learnt)
        self.n_bytes = {
            "fwd": n_bytes + result_bytes,
            # Beside the forward: inputs and upstream gradients read, a gradient written for every input that gets one.
            "fwd+bwd": 2 * (n_bytes + result_bytes) + _bytes(learnt),
        }
        n_sets = 2 if quick else n_copies(n_bytes, cache_bytes(device))
        self._sets = [first, *(case.arguments(size, Draw(i, device, dtype)) for i in range(1, n_sets))]
        draw = Draw(n_sets, device)
        self._upstream = [draw.normal(*y.shape).to(y.dtype) for y in results if y.is_floating_point()]

    def forward(self, form: Form) -> Callable[[int], object]:
        """Calls without gradients."""

        def call(number: int) -> None:
            with torch.no_grad(), self._order(form):
                self._forward(form, self._sets[number % len(self._sets)])

        return call

    def both(self, form: Form) -> Callable[[int], object]:
        """Calls with the gradient of every argument, where any gets one."""

        def call(number: int) -> None:
            given = self._sets[number % len(self._sets)]
            with self._order(form):
                results = [y for y in self._forward(form, given) if y.is_floating_point()]
                upstream = {
                    y: g.to(y.dtype) for y, g in zip(results, self._upstream, strict=True) if y.requires_grad
                }
                leaves = [x for x in tensors_of(given) if x.requires_grad]
                torch.autograd.grad([*upstream], leaves, [*upstream.values()], allow_unused=True)

        return call

    @staticmethod
    def _order(form: Form) -> AbstractContextManager[None]:
        return any_order() if form == "naive" else nullcontext()

    def _forward(self, form: Form, given: Arguments) -> list[Tensor]:
        with use_form(form), self._autocast():
            return tensors_of(self.case.function(**given))


def times(
    name: str,
    case: Case,
    size: Size,
    device: torch.device,
    dtype: torch.dtype,
    ceilings: Ceilings,
    n_windows: int,
    quick: bool = False,
) -> list[Row]:
    """Times every form of an operator, the reference among them, in one run.

    Args:
        name: of the case.
        case: the operator.
        size: of the calls.
        device: where they compute.
        dtype: of activations.
        ceilings: of the device.
        n_windows: of each form and pass.
        quick: short windows on two sets of inputs.
    """
    calls = Calls(case, size, device, dtype, quick)
    works: dict[tuple[Form, str], Callable[[int], object]] = {}
    for form in case.forms(device):
        works[form, "fwd"] = calls.forward(form)
        if calls.learns:
            works[form, "fwd+bwd"] = calls.both(form)
    named: Mapping[str, tuple[Form, str]] = {" ".join(key): key for key in works}
    found = measure(
        {label: works[key] for label, key in named.items()}, device, n_windows, 0.0 if quick else None
    )
    rate = ceilings.products["bf16" if dtype == torch.bfloat16 else "fp32"]
    rows = []
    for label, (form, what) in named.items():
        seconds, flops = found[label].median, case.flops(size) * FORWARDS[what]
        rows.append(
            Row(
                name,
                size,
                form,
                what,
                found[label],
                calls.n_bytes[what],
                flops,
                calls.n_bytes[what] / ceilings.copy / seconds,
                flops / rate / seconds if case.has_products else None,
                found[f"naive {what}"].median / seconds,
            )
        )
    return rows


def swept(size: Size, letter: str, case: Case) -> list[Size]:
    """Sizes of a sweep; none where the operator does not depend on it.

    Args:
        size: around which.
        letter: T, D, N or B.
        case: the operator.
    """
    if letter not in case.sizes:
        return []
    return [size._replace(**{letter: value}) for value in around(getattr(size, letter))]


def around(middle: int) -> list[int]:
    """A quarter of a size to four times it, with an odd one among them."""
    return sorted(
        {max(1, middle // 4), max(1, middle // 2), max(1, middle - 1), middle, 2 * middle, 4 * middle}
    )


def _bytes(tensors: list[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)
