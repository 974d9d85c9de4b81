"""Which import paths a file may name: whole names under allowed prefixes, and nothing that is only passed on there."""

import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from app.run.errors import ConfigurationError


def check_trusted(prefixes: Iterable[str]) -> None:
    """Refuses what ``--trust_imports`` cannot mean.

    Raises:
        ConfigurationError: a prefix is no name of a package or module.
    """
    for prefix in prefixes:
        if not all(part.isidentifier() for part in prefix.split(".")):
            raise ConfigurationError(
                f"--trust_imports {prefix!r}: is no name of a package or module; write it as in `import`"
            )


#: where the user's own packages are; None for the folder that the program was called in
_folder: str | None = None


def folder_of_trusted() -> str:
    """The folder in which trusted packages are looked for before anywhere else."""
    return os.getcwd() if _folder is None else _folder


def find_trusted_in(folder: str) -> None:
    """Names another folder than the one that the program was called in."""
    global _folder
    _folder = folder


def make_trusted_found() -> None:
    """Puts the folder of trusted packages on the path."""
    # By name: a parser goes into the folder of each file while it reads it.
    if folder_of_trusted() not in sys.path:
        sys.path.insert(0, folder_of_trusted())


def is_below(path: str, prefixes: Iterable[str]) -> bool:
    """Whether an import path lies in one of these packages or modules: ``mypkg.Net`` does not lie in ``my``."""
    parts = path.split(".")
    if not all(part.isidentifier() for part in parts):
        return False
    return any(
        parts[: len(names)] == names and len(parts) > len(names) for names in (p.split(".") for p in prefixes)
    )


def imported(path: str, prefixes: Sequence[str], trusted: Sequence[str], refusal: str) -> Any:
    """A class or function by its import path; anything not allowed is refused before it is imported.

    Args:
        path: module and name.
        prefixes: of ours, whose code may be named.
        trusted: of the user's own.
        refusal: what a person is told, behind the path.

    Raises:
        ConfigurationError: it is not allowed, also where an allowed module has only imported it from elsewhere, or
            is not there.
    """
    check_trusted(trusted)
    allowed = (*prefixes, *trusted)
    if not is_below(path, allowed):
        raise ConfigurationError(f"{path}: {refusal}")
    if trusted:
        make_trusted_found()
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"{path}: {error}; was the run made by another version?") from error
    home = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
    if not is_below(home, allowed):
        raise ConfigurationError(f"{path}: {refusal}")
    return found
