"""Imports without optional packages that nobody is going to need.

Some libraries import whatever optional package they find: behind lightning, torchmetrics brings scipy, transformers and
matplotlib, which is a third of the time that the framework takes to import.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder, PackageNotFoundError
from types import ModuleType


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
def absent(*packages: str) -> Iterator[None]:
    """Makes what is imported meanwhile find these packages missing.

    It goes on believing so: for processes that end soon and run nobody else's code.

    Args:
        packages: names of top-level packages that are distributed under the same name.
    """
    finder = _Absent(packages)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
