"""Which form of an operator computes a call: decided here, by device, number format and shape.

An operator is a package beside this file. Each of its forms is a module with functions of the same names, arguments
and results: ``naive`` is the reference, ``vectorized`` what PyTorch computes fast, ``triton`` is for GPUs. Its
``__init__.py`` makes one function of them, which is called like any other::

    banked_ffn = operator(vectorized.banked_ffn)

A kernel is right or wrong by its compiler's version, and only as it was checked. It is used where ``passed.json`` says
that all of its checks held. ``app bench --check --record`` writes it on the device: by version of PyTorch, family of
GPU and form the operators, each with a digest of the source that passed,
``{"2.11.0": {"sm_90": {"triton": ["app.ops.banked_ffn fe62e2c8352719f8"]}}}``.
The environment variable ``APP_OP_FORM`` names a form to be tried first, passed or not, for a whole process;
:func:`use_form` does so for a while, and :func:`keep` holds the forms that a run began with. On the CPU Triton's
kernels compute through its interpreter alone, with ``TRITON_INTERPRET=1``: that is for tests.
"""

import functools
import importlib
import importlib.util
import inspect
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, get_args

import torch

from app.ops.sources import digest

P = ParamSpec("P")
R = TypeVar("R")

Form = Literal["triton", "vectorized", "naive"]
FORMS: tuple[Form, ...] = get_args(Form)
WITHOUT_KERNELS: tuple[Form, ...] = ("vectorized", "naive")
PASSED = Path(__file__).with_name("passed.json")
#: number formats that kernels are written for; fp64 is there for gradients by finite differences
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

#: which all operators are in
PACKAGE = "app.ops"
#: the environment variable that names a form for a whole process
VARIABLE = "APP_OP_FORM"

_forced: str | None = os.environ.get(VARIABLE) or None
#: by package the form that a run began with
_kept: dict[str, Form] = {}
#: by package of each operator that has been imported the forms that it has
forms_of: dict[str, list[Form]] = {}


def preferred(
    device: torch.device, dtype: torch.dtype, shape: torch.Size, package: str = ""
) -> tuple[Form, ...]:
    """Forms in the order in which they are tried, a forced one first; one that an operator lacks falls to the next.

    Args:
        device: of the operator's first argument, as for the following.
        dtype: its number format.
        shape: its shape.
        package: of the operator; the form that is kept of it comes before all but a forced one.

    Raises:
        ValueError: ``APP_OP_FORM`` names no form.
    """
    # What torch.compile sees are PyTorch's own operations, which it fuses itself.
    forms = FORMS if device.type == "cuda" and not torch.compiler.is_compiling() else WITHOUT_KERNELS
    kept = _kept.get(package)
    if kept is not None and not (kept == "triton" and torch.compiler.is_compiling()):
        forms = (kept, *forms)
    if _forced is not None:
        forms = (_form(_forced, VARIABLE), *forms)
    if dtype in KERNEL_DTYPES and 0 not in shape and (device.type == "cuda" or _is_interpreted()):
        return forms
    return tuple(form for form in forms if form in WITHOUT_KERNELS)


@functools.cache
def passed(device: torch.device) -> Mapping[str, Sequence[str]]:
    """By form the operators that it is right for, as :func:`entry` names them, on such a GPU with this PyTorch.

    Args:
        device: a GPU.
    """
    version = torch.__version__.partition("+")[0]
    family = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    forms: Mapping[str, Sequence[str]] = json.loads(PASSED.read_text()).get(version, {}).get(family, {})
    return forms


def entry(package: str, form: str) -> str:
    """How the table names a form of an operator: its package, and a digest of the source."""
    return f"{package} {digest(f'{package}.{form}')}"


@functools.cache
def has_passed(form: Form, package: str, device: torch.device) -> bool:
    """Whether a form of an operator is right as it stands here, on such a GPU with this version of PyTorch."""
    known = passed(device).get(form, ())
    return bool(known) and entry(package, form) in known


@contextmanager
def use_form(form: Form) -> Iterator[None]:
    """For the time of a ``with`` block, every operator that has this form computes by it.

    With ``naive`` a network is computed in its original form, every bank on every token: what tests and benchmarks hold
    the fast forms against.

    Raises:
        ValueError: there is no such form.
    """
    global _forced
    before, _forced = _forced, _form(form, "form")
    try:
        yield
    finally:
        _forced = before


def keep(forms: Mapping[str, str]) -> None:
    """From now on operators compute by these forms, passed or not, where no form is forced; others as they would.

    Args:
        forms: by name of the operator, as :func:`taken` gives them; none to let every operator choose again.

    Raises:
        ValueError: there is no such form.
    """
    kept = {f"{PACKAGE}.{name}": _form(form, name) for name, form in forms.items()}
    _kept.clear()
    _kept.update(kept)


def operator(described: Callable[P, R]) -> Callable[P, R]:
    """One function of all forms of an operator: each call is computed by the form that suits its first argument.

    Args:
        described: the function in one of its forms, whose signature and docstring are those of all.
    """
    package, name = described.__module__.rpartition(".")[0], described.__name__
    first = next(iter(inspect.signature(described).parameters))
    forms = [form for form in FORMS if importlib.util.find_spec(f"{package}.{form}") is not None]
    functions = {form: _function(package, form, name) for form in forms if form in WITHOUT_KERNELS}
    forms_of[package] = forms

    def compute(*args: P.args, **kwargs: P.kwargs) -> R:
        x: Any = args[0] if args else kwargs[first]
        for form in preferred(x.device, x.dtype, x.shape, package):
            if form not in forms or not may_compute(form, package, x.device):
                continue
            if form not in functions:
                # Not before it is needed: a form for a GPU brings a compiler with it.
                functions[form] = _function(package, form, name)
            function = functions[form]
            if function is not None:
                return function(*args, **kwargs)
        raise NotImplementedError(f"{package}: has no form that computes {name} on {x.device}")

    # A code of its own under its own name, by which profilers and torch.compile tell functions apart.
    compute.__code__ = compute.__code__.replace(co_name=name)
    functools.update_wrapper(compute, described).__module__ = package
    return compute


def has_kernel(function: Callable[..., Any], x: torch.Tensor) -> bool:
    """Whether a kernel would compute an operator: for a caller that has a way of its own where none does.

    Args:
        function: as networks call it, of :func:`operator`.
        x: its first argument.
    """
    package, name = function.__module__, function.__name__
    return (
        preferred(x.device, x.dtype, x.shape, package)[0] == "triton"
        and may_compute("triton", package, x.device)
        and importlib.util.find_spec(f"{package}.triton") is not None
        and _function(package, "triton", name) is not None
    )


def may_compute(form: Form, package: str, device: torch.device) -> bool:
    """Whether a form of an operator is right for a device, or asked for by name."""
    return (
        form in WITHOUT_KERNELS or form in (_forced, _kept.get(package)) or has_passed(form, package, device)
    )


def _form(name: str, given_as: str) -> Form:
    for form in FORMS:
        if form == name:
            return form
    raise ValueError(f"{given_as} = {name!r}: must be one of {', '.join(FORMS)}")


def _is_interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _function(package: str, form: Form, name: str) -> Callable[..., Any] | None:
    """What a form has under this name; None, with a notice, where the compiler that it is written for is missing."""
    try:
        module = importlib.import_module(f"{package}.{form}")
    except ImportError as error:
        if form != "triton" or (error.name or "").split(".")[0] != "triton":
            raise
        _tell_of_missing_triton(str(error))
        return None
    return getattr(module, name, None)


@functools.cache
def _tell_of_missing_triton(error: str) -> None:
    warnings.warn(
        f"no Triton here ({error}): operators compute without kernels of their own, slower. `pip install triton`",
        RuntimeWarning,
        stacklevel=4,
    )
