"""The operators that a network calls, and the forms that compute them, see :mod:`app.ops.choice`."""

import contextlib
import importlib.metadata
import importlib.util
import inspect
import os
import sys
from collections.abc import Mapping

import torch
from torch import nn

from app.ops import choice
from app.ops.choice import FORMS, PACKAGE, PASSED, Form, keep
from app.ops.sources import digest

__all__ = ["FORMS", "PASSED", "called_by", "code", "is_form_said", "keep", "taken"]


def is_form_said() -> bool:
    """Whether the environment says which form every operator tries first, or with an empty word that none is."""
    return choice.VARIABLE in os.environ


def taken(network: nn.Module, device: torch.device, is_kept: bool = True) -> Mapping[str, Form]:
    """By name of each operator that a network's code calls, the form that computes it on a device.

    A call in a number format that no kernel takes, or of nothing, may still fall to another form.

    Args:
        network: any.
        device: where it computes.
        is_kept: whether what :func:`keep` holds counts.
    """
    usual = torch.float32, torch.Size((1,))
    found: dict[str, Form] = {}
    for package in sorted(called_by(network)):
        found[package.rpartition(".")[2]] = next(
            form
            for form in choice.preferred(device, *usual, package if is_kept else "")
            if form in choice.forms_of[package]
            and choice.may_compute(form, package, device)
            and (form != "triton" or importlib.util.find_spec("triton") is not None)
        )
    return found


def called_by(network: nn.Module) -> set[str]:
    """Packages of the operators that the code of a network names, directly or in functions and classes of its own."""
    files = [type(part).__module__ for part in network.modules()]
    own = {file.partition(".")[0] for file in files} - {"torch"}
    seen: set[str] = set()
    found: set[str] = set()
    while files:
        file = files.pop()
        if file in seen or file.partition(".")[0] not in own:
            continue
        seen.add(file)
        for value in vars(sys.modules[file]).values():
            home = getattr(value, "__module__", None)
            if not isinstance(home, str) or not (inspect.isfunction(value) or inspect.isclass(value)):
                continue
            if home in choice.forms_of:
                found.add(home)
            elif not home.startswith(f"{PACKAGE}."):
                files.append(home)
    return found


def code(forms: Mapping[str, str]) -> str:
    """What tells apart the code of operators, their tables of blocks among it, and the compiler of kernels.

    Args:
        forms: by name of the operator, as :func:`taken` gives them.
    """
    found = digest(*(f"{PACKAGE}.{name}.{form}" for name, form in forms.items()))
    if "triton" in forms.values():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found += f", triton {importlib.metadata.version('triton')}"
    return found
