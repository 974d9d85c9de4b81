"""How an operator describes itself to whoever measures it or holds its forms against each other.

An operator's package has a ``cases.py`` with ``CASES``: a :class:`Case` for each function and each kind of call that is
computed in another way. It is found by its folder, so that a new operator needs no word elsewhere.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from app.ops.choice import FORMS, WITHOUT_KERNELS, Form

#: the widest head of an attention whose heads are as wide as usual
D_HEAD = 64


class Size(NamedTuple):
    """Sizes of a call; an operator uses those that mean something to it.

    Attributes:
        B: windows.
        T: tokens of each.
        D: width.
        N: weight banks.
        n_empty: banks that no token chooses, fewer than N.
        top_k: positions that a query keeps.
    """

    B: int
    T: int
    D: int
    N: int = 4
    n_empty: int = 0
    top_k: int = 8

    @property
    def causal_pairs(self) -> int:
        """Pairs of a query and a position that it may see, of all windows."""
        return self.B * self.T * (self.T + 1) // 2

    @property
    def heads(self) -> tuple[int, int]:
        """Number and width of the heads of an attention of this width."""
        n_heads = max(1, self.D // D_HEAD)
        return n_heads, self.D // n_heads


class Draw:
    """Draws the arguments of a call; the same ones from the same seed.

    Args:
        seed: of all of them.
        device: where they are to be.
        dtype: of activations. Weights are kept in fp32 at least, but hold numbers that this format has.
    """

    def __init__(self, seed: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32):
        self.device = torch.device("cpu") if device is None else device
        self.dtype = dtype
        # On the CPU: every device then gets the same numbers.
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def normal(self, *shape: int, std: float = 1.0) -> Tensor:
        """Normal numbers in the format of activations, without a gradient."""
        wide = torch.promote_types(self.dtype, torch.float32)
        drawn = torch.randn(shape, generator=self._generator, dtype=wide) * std
        return drawn.to(self.dtype).to(self.device)

    def activation(self, *shape: int, std: float = 1.0) -> Tensor:
        """An activation that gets a gradient."""
        return self.normal(*shape, std=std).requires_grad_()

    def weight(self, *shape: int, std: float = 1.0) -> Tensor:
        """A weight that gets a gradient."""
        wide = torch.promote_types(self.dtype, torch.float32)
        return self.normal(*shape, std=std).to(wide).requires_grad_()

    def bank(self, size: Size) -> Tensor:
        """``(B, T)`` int64: the bank of each token; the last ``n_empty`` are chosen by none."""
        chosen = torch.randint(0, size.N - size.n_empty, (size.B, size.T), generator=self._generator)
        return chosen.to(self.device)


Arguments = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A function of an operator, or one kind of its calls.

    Attributes:
        function: as networks call it.
        arguments: draws the arguments of a call.
        flops: operations that a forward has to make, at least.
        sizes: letters of those of :class:`Size` that it depends on.
        has_products: whether these operations are those of matrix products.
        near_ties: where a decision between numbers is so close that rounding may turn it: bool, in the shape of the
            first axes of the outputs, given arguments and a relative margin. None where nothing is decided.
        decides_in_fp32: whether it compares unrounded numbers also where products are rounded to bf16.
    """

    function: Callable[..., Any]
    arguments: Callable[[Size, Draw], Arguments]
    flops: Callable[[Size], int]
    sizes: str = "BTDN"
    has_products: bool = False
    near_ties: Callable[[Mapping[str, Any], float], Tensor] | None = None
    decides_in_fp32: bool = False

    def forms(self, device: torch.device) -> list[Form]:
        """The forms that this operator has and that run on this device, the reference last."""
        package = self.function.__module__
        candidates = FORMS if device.type == "cuda" else WITHOUT_KERNELS
        return [form for form in candidates if importlib.util.find_spec(f"{package}.{form}") is not None]


def operators() -> list[str]:
    """Names of the operators that describe themselves."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/cases.py"))


def cases(operator: str) -> dict[str, Case]:
    """What an operator says of itself, by name.

    Args:
        operator: one of :func:`operators`.
    """
    described: dict[str, Case] = importlib.import_module(f"{__package__}.{operator}.cases").CASES
    return described


def all_cases() -> Iterator[tuple[str, Case]]:
    """Those of every operator."""
    for operator in operators():
        yield from cases(operator).items()


def tensors_of(values: Any) -> list[Tensor]:
    """Every tensor in arguments or results, in order."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, Mapping):
        values = values.values()
    elif not isinstance(values, list | tuple):
        return []
    return [tensor for value in values for tensor in tensors_of(value)]


def with_tensors(values: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same arguments with every tensor changed."""
    if isinstance(values, Tensor):
        return change(values)
    if isinstance(values, Mapping):
        return {name: with_tensors(value, change) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return type(values)(with_tensors(value, change) for value in values)
    return values


def closest_scores(scores: Tensor, n_kept: int, margin: float) -> Tensor:
    """Where rounding may turn which of some scores is the last that is kept, ``(...)`` bool.

    Args:
        scores: ``(..., n)``, −inf where nothing is to be kept.
        n_kept: at least 1.
        margin: between the last kept and the first dropped one, relative to the largest of the row, by whose terms they
            are rounded; the two alone may be close to zero.
    """
    if scores.shape[-1] <= n_kept:
        return torch.zeros(scores.shape[:-1], dtype=torch.bool, device=scores.device)
    kept, dropped = scores.topk(n_kept + 1, -1).values[..., -2:].unbind(-1)
    largest = scores.masked_fill(scores.isinf(), 0.0).abs().amax(-1)
    # Between two of −inf nothing is decided; their difference is no number, and not within any margin.
    return kept - dropped <= margin * largest
