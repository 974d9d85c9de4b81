"""Which form of an operator computes a call, and what every operator has."""

import importlib
import inspect
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import app.ops
from app.ops import choice, use_form
from app.ops.choice import FORMS

FOLDER = Path(app.ops.__path__[0])
OPERATORS = [module.name for module in pkgutil.iter_modules(app.ops.__path__) if module.ispkg]
FORM = "def widen(x, factor=1):\n    return {name!r}, factor\n"


def argument(device: str, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (2, 3)) -> Any:
    """What is looked at of a first argument, on a device that need not be here."""
    return SimpleNamespace(device=torch.device(device), dtype=dtype, shape=torch.Size(shape))


@pytest.fixture(autouse=True)
def every_form_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "has_passed", lambda form, package, device: True)


def widen(folder: Path, monkeypatch: pytest.MonkeyPatch, *forms: str) -> Any:
    """An operator with some forms, each of which tells its name."""
    package = folder / "widen"
    package.mkdir()
    for form in forms:
        (package / f"{form}.py").write_text(FORM.format(name=form))
    (package / "__init__.py").write_text(
        f"from app.ops.choice import operator\nfrom widen import {forms[-1]}\nwiden = operator({forms[-1]}.widen)\n"
    )
    monkeypatch.syspath_prepend(folder)
    for name in ("widen", *(f"widen.{form}" for form in FORMS)):
        monkeypatch.delitem(importlib.sys.modules, name, raising=False)
    return importlib.import_module("widen").widen


@pytest.mark.parametrize(
    ("forms", "device", "dtype", "shape", "expected"),
    [
        (("naive",), "cpu", torch.float32, (2, 3), "naive"),
        (("naive", "vectorized"), "cpu", torch.float32, (2, 3), "vectorized"),
        (("naive", "vectorized"), "cuda", torch.float32, (2, 3), "vectorized"),
        (("naive", "vectorized", "triton"), "cpu", torch.float32, (2, 3), "vectorized"),
        (("naive", "vectorized", "triton"), "cuda:1", torch.bfloat16, (2, 3), "triton"),
        (("naive", "vectorized", "triton"), "cuda", torch.float64, (2, 3), "vectorized"),
        (("naive", "vectorized", "triton"), "cuda", torch.float32, (0, 3), "vectorized"),
        (("naive", "triton"), "cuda", torch.float64, (2, 3), "naive"),
        (("naive", "vectorized", "triton"), "meta", torch.float32, (2, 3), "vectorized"),
    ],
    ids=str,
)
def test_the_form_follows_from_device_format_and_shape(
    forms: tuple[str, ...],
    device: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    op = widen(tmp_path, monkeypatch, *forms)
    assert op(argument(device, dtype, shape)) == (expected, 1)
    assert op(factor=2, x=argument(device, dtype, shape)) == (expected, 2)


def test_a_compiled_form_computes_where_it_was_found_right_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    op = widen(tmp_path, monkeypatch, "naive", "vectorized", "triton")
    monkeypatch.undo()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    table = tmp_path / "passed.json"
    monkeypatch.setattr(choice, "PASSED", table)
    version = torch.__version__.partition("+")[0]
    forms, others = (
        {"triton": [choice.entry("widen", "triton")]},
        {"triton": ["widen", "widen 0123456789abcdef"]},
    )
    right, elsewhere = {version: {"sm_90": forms}}, {version: {"sm_80": forms}, "1.0.0": {"sm_90": forms}}
    edited = {version: {"sm_90": others}}
    for content, expected in (
        (right, "triton"),
        (elsewhere, "vectorized"),
        (edited, "vectorized"),
        ({}, "vectorized"),
    ):
        table.write_text(json.dumps(content))
        choice.passed.cache_clear()
        choice.has_passed.cache_clear()
        assert op(argument("cuda")) == (expected, 1)
    with use_form("triton"):  # who asks for it by name is to compare it
        assert op(argument("cuda")) == ("triton", 1)
    choice.passed.cache_clear()
    choice.has_passed.cache_clear()


def test_a_form_for_a_gpu_is_imported_when_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    op = widen(tmp_path, monkeypatch, "naive", "vectorized", "triton", "vectorized")
    op(argument("cpu"))
    assert "widen.triton" not in importlib.sys.modules
    op(argument("cuda"))
    assert "widen.triton" in importlib.sys.modules


def test_a_form_is_forced_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    op = widen(tmp_path, monkeypatch, "naive", "vectorized")
    with use_form("naive"):
        assert op(argument("cpu"))[0] == "naive"
        with use_form("vectorized"):
            assert op(argument("cpu"))[0] == "vectorized"
        with use_form("triton"):  # which this operator does not have
            assert op(argument("cpu"))[0] == "vectorized"
        with pytest.raises(KeyError), use_form("vectorized"):
            raise KeyError
        assert op(argument("cpu"))[0] == "naive"
    assert op(argument("cpu"))[0] == "vectorized"
    with pytest.raises(ValueError, match="form = 'fast': must be one of triton, vectorized, naive"):
        use_form("fast").__enter__()  # type: ignore[arg-type]


def test_the_environment_names_a_form_for_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    op = widen(tmp_path, monkeypatch, "naive", "vectorized")
    program = "from app.ops import choice; print(choice._forced)"
    process = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"APP_OP_FORM": "naive"},
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout == "naive\n"
    monkeypatch.setattr(choice, "_forced", "naive")
    assert op(argument("cpu"))[0] == "naive"
    with use_form("vectorized"):
        assert op(argument("cpu"))[0] == "vectorized"
    monkeypatch.setattr(choice, "_forced", "fast")
    with pytest.raises(ValueError, match="APP_OP_FORM = 'fast': must be one of triton, vectorized, naive"):
        op(argument("cpu"))


def test_kernels_compute_on_the_cpu_through_their_interpreter_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    op = widen(tmp_path, monkeypatch, "naive", "vectorized", "triton")
    with use_form("triton"):
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        assert op(argument("cpu"))[0] == "triton"
        assert op(argument("cpu", torch.float64))[0] == "vectorized"
        assert op(argument("cpu", shape=(0, 3)))[0] == "vectorized"
        monkeypatch.delenv("TRITON_INTERPRET")
        assert op(argument("cpu"))[0] == "vectorized"


def test_a_missing_triton_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = widen(tmp_path, monkeypatch, "naive", "vectorized", "triton", "vectorized")
    second = choice.operator(sys.modules["widen.vectorized"].widen)
    (tmp_path / "widen" / "triton.py").write_text("import triton\n")
    monkeypatch.setitem(sys.modules, "triton", None)
    choice._tell_of_missing_triton.cache_clear()
    with pytest.warns(RuntimeWarning, match="no Triton here .*pip install triton") as told:
        computed = [op(argument("cuda"))[0] for op in (first, second, first)]
    assert computed == ["vectorized"] * 3
    assert len(told) == 1


def test_what_else_a_kernel_fails_to_import_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    op = widen(tmp_path, monkeypatch, "naive", "vectorized", "triton", "vectorized")
    (tmp_path / "widen" / "triton.py").write_text("import widen.nothing\n")
    with pytest.raises(ModuleNotFoundError, match=r"widen\.nothing"):
        op(argument("cuda"))


def test_an_operator_without_a_form_for_a_device_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    op = widen(tmp_path, monkeypatch, "triton")
    assert op(argument("cuda")) == ("triton", 1)
    with pytest.raises(NotImplementedError, match="widen: has no form that computes widen on cpu"):
        op(argument("cpu"))


@pytest.mark.parametrize("name", OPERATORS)
def test_all_forms_of_an_operator_are_called_alike(name: str) -> None:
    package = importlib.import_module(f"app.ops.{name}")
    assert (FOLDER / name / "README.md").read_text().startswith(f"# {name}\n"), (
        f"its first line is `# {name}`"
    )
    forms = [form for form in FORMS if (FOLDER / name / f"{form}.py").exists()]
    assert "naive" in forms
    naive = importlib.import_module(f"app.ops.{name}.naive")
    described = [
        f for f in vars(package).values() if inspect.isfunction(f) and f.__module__ == package.__name__
    ]
    assert name in {function.__name__ for function in described}
    for function in described:
        signature = inspect.signature(function)
        assert inspect.signature(getattr(naive, function.__name__)) == signature
        for form in forms:
            if form == "triton":
                pytest.importorskip("triton")
            own = getattr(importlib.import_module(f"app.ops.{name}.{form}"), function.__name__, None)
            assert own is None or inspect.signature(own) == signature, form


def test_what_torch_compile_sees_are_pytorchs_operations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = widen(tmp_path, monkeypatch, "naive", "vectorized", "triton")
    assert function(argument("cuda"))[0] == "triton"
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert function(argument("cuda"))[0] == "vectorized"
