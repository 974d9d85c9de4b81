"""A network laid out before memory is taken for it."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration
from torch.overrides import TorchFunctionMode

Network = TypeVar("Network", bound=nn.Module)

#: bytes that a module, and a tensor beside its entries, take at most
MODULE_BYTES, TENSOR_BYTES = 8 << 10, 2 << 10
#: methods and initialisers that change the entries of a tensor and nothing else
_FILLING = frozenset(
    ("add_", "clamp_", "copy_", "div_", "erfinv_", "fill_", "mul_", "normal_", "sub_", "uniform_", "zero_")
)
_SCALING = frozenset(
    ("mul", "__mul__", "__rmul__", "div", "__truediv__")
)  # the same of a float tensor, by a number


def lay_out(build: Callable[[], Network], charge: Callable[[int], None]) -> Network:
    """Builds a network of tensors without memory (device ``meta``), and counts what it would take as it grows.

    Args:
        build: makes the network.
        charge: is called with the bytes of every module, parameter and buffer before the next one comes; what it
            raises ends the building.
    """
    with _watched(charge), torch.device("meta"), _WithoutEntries(charge):
        return build()


@contextmanager
def _watched(charge: Callable[[int], None]) -> Iterator[None]:
    """For the time of a ``with`` block, charges everything that any module is given, each tensor once."""
    seen: dict[int, Tensor] = {}

    def tensor(owner: nn.Module, name: str, given: Tensor | None) -> None:
        if given is not None and id(given) not in seen:
            seen[id(given)] = given
            charge(TENSOR_BYTES + given.nbytes)

    def module(owner: nn.Module, name: str, given: nn.Module | None) -> None:
        charge(MODULE_BYTES)

    hooks = [
        registration.register_module_parameter_registration_hook(tensor),
        registration.register_module_buffer_registration_hook(tensor),
        registration.register_module_module_registration_hook(module),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _WithoutEntries(TorchFunctionMode):
    """Leaves out what fills tensors without memory, and charges those that a constructor makes elsewhere by size.

    To fill one would take a second at first: PyTorch imports its compiler for it.
    """

    def __init__(self, charge: Callable[[int], None]):
        super().__init__()
        self.charge = charge

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, first = getattr(func, "__name__", ""), args[0] if args else kwargs.get("tensor")
        if isinstance(first, Tensor) and first.is_meta:
            is_scaled = name in _SCALING and len(args) == 2 and isinstance(args[1], int | float)
            if name in _FILLING or (is_scaled and first.is_floating_point()):
                return first
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type != "meta":
            sizes = args[0] if args and isinstance(args[0], list | tuple) else args
            if all(isinstance(size, int) for size in sizes):
                self.charge(8 * math.prod(sizes))
        elif func in (torch.rand, torch.randn):
            return torch.empty(*args, dtype=kwargs.get("dtype"), device="meta")
        return func(*args, **kwargs)
