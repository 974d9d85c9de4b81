"""Imports without optional packages that nobody is going to need.

Some libraries import whatever optional package they find: behind lightning, torchmetrics brings scipy, transformers and
matplotlib, which is a third of the time that the framework takes to import.
"""

import atexit
import gc
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder, PackageNotFoundError
from types import ModuleType
from typing import Any

#: the compiler of PyTorch, a third of the rest of that time, of which lightning needs to know two names
COMPILER = "torch._dynamo"
#: what torchmetrics asks for while lightning imports it, for metrics that language models have no use for
OF_TORCHMETRICS = ("matplotlib", "scipy", "transformers")


class _Absent(DistributionFinder):
    """Answers, before all other finders, that some packages are not installed."""

    def __init__(self, names: Iterable[str]):
        self.names = frozenset(names)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """None, so that the next finder is asked, except for the packages that are absent."""
        if fullname.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None

    def find_distributions(
        self,
        context: DistributionFinder.Context = DistributionFinder.Context(),  # noqa: B008 - the base's default
    ) -> Iterable[Distribution]:
        """None of its own; the same exception."""
        if context.name in self.names:
            raise PackageNotFoundError(context.name)
        return ()


@contextmanager
def quick_framework(trusted: Sequence[str]) -> Iterator[None]:
    """Imports lightning meanwhile without what torchmetrics would import beside it, see also :func:`kept`.

    Args:
        trusted: import prefixes of somebody's own code, which may want all of torchmetrics: it then has it.
    """
    with kept(), nullcontext() if trusted else without_packages(*OF_TORCHMETRICS):
        yield


@contextmanager
def kept() -> Iterator[None]:
    """Keeps what the framework's import makes out of the garbage collector, until the process ends.

    Hundreds of thousands of objects stay for good; the collector would go through them again and again while there
    are ever more of them, and later in the midst of the steps. Where the framework is there already nothing is done:
    what others have made since may well be garbage.
    """
    if "lightning" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        # Extension modules complain at the end of the interpreter about what it does not take down.
        atexit.register(gc.unfreeze)
        gc.enable()


@contextmanager
def without_packages(*packages: str) -> Iterator[None]:
    """Makes what is imported meanwhile find these packages missing.

    It goes on believing so: for processes that run nobody else's code.

    Args:
        packages: names of top-level packages that are distributed under the same name.
    """
    finder = _Absent(packages)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Compiler(ModuleType):
    """What lightning asks the compiler for while it is imported; who asks for anything else gets the real one."""

    OptimizedModule = type("OptimizedModule", (), {})

    @staticmethod
    def disable(function: Callable | None = None, *_: Any, **__: Any) -> Callable:
        """What is never compiled, as it is."""
        return function if function is not None else _Compiler.disable

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {COMPILER!r} has no attribute {name!r}")
        if sys.modules.get(COMPILER) is self:
            del sys.modules[COMPILER]
        return getattr(importlib.import_module(COMPILER), name)


@contextmanager
def without_compiler() -> Iterator[None]:
    """Lets lightning be imported without the compiler of PyTorch; for the same processes."""
    if COMPILER in sys.modules:
        yield
        return
    stand_in = sys.modules[COMPILER] = _Compiler(COMPILER)
    try:
        yield
    finally:
        if sys.modules.get(COMPILER) is stand_in:
            del sys.modules[COMPILER]
