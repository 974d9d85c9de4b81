"""When two sources are one: what a digest of a form's code tells apart."""

import sys
from pathlib import Path

import pytest

import app.ops
from app.ops import sources

FORM = '''"""A form."""

import torch

from widen import helper, other
from widen.steps import halve


def widen(x, factor=1.5):
    """Twice as wide."""
    # Half of it first.
    return halve(x) * factor + helper.ONE, f"{x!r:>{factor}} {x=}"
'''
PARTS = {
    "form": FORM,
    "helper": "from widen import deeper\nONE = deeper.ONE\n",
    "deeper": "ONE = 1\n",
    "steps": "def halve(x):\n    return x / 2\n",
    "other": "",
    "unread": "import widen.form\n",
}
#: what every version of Python makes of these
DIGEST = "2be092c0825e0287"


def digest_of(folder: Path, monkeypatch: pytest.MonkeyPatch, **changed: str) -> str:
    """Of a form with its helpers, some of them changed."""
    package = folder / "widen"
    package.mkdir(exist_ok=True)
    for name, text in {"__init__": "", **PARTS, **changed}.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "widen", raising=False)  # that of another test
    sources._code.cache_clear()
    found = sources.digest("widen.form")
    sources._code.cache_clear()
    return found


SAME = {
    "comments": {
        "form": FORM.replace("# Half of it first.", "# It is halved, then scaled.") + "# The end.\n"
    },
    "docstrings": {"form": FORM.replace("Twice as wide.", "Wider.").replace("A form.", "A text.")},
    "no docstring": {"form": FORM.replace('    """Twice as wide."""\n', "")},
    "layout": {
        "form": FORM.replace("(x, factor=1.5)", "(\n    x,\n    factor=1.5,\n)")
        .replace('f"', "f'")
        .replace('=}"', "=}'")
    },
    "what is not imported": {"unread": "ONE = 2\n"},
}
OTHER = {
    "a number": {"form": FORM.replace("1.5", "1.25")},
    "a name": {"form": FORM.replace("factor=", "scale=")},
    "what a text says": {"form": FORM.replace("!r", "!s")},
    "a block": {"steps": "def halve(x):\n    x = x\nreturn_ = 2\n"},
    "a module imported": {"helper": "from widen import deeper\nONE = deeper.ONE + 1\n"},
    "a module behind it": {"deeper": "ONE = 2\n"},
    "a function imported": {"steps": "def halve(x):\n    return x / 4\n"},
    "a module that was empty": {"other": "ONE = 1\n"},
}


def test_it_is_the_same_in_every_version_of_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert digest_of(tmp_path, monkeypatch) == DIGEST


@pytest.mark.parametrize("change", SAME)
def test_what_computes_the_same_has_the_same_digest(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert digest_of(tmp_path, monkeypatch, **SAME[change]) == DIGEST


@pytest.mark.parametrize("change", OTHER)
def test_code_that_changes_changes_it(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert digest_of(tmp_path, monkeypatch, **OTHER[change]) != DIGEST


def test_operators_import_by_whole_names() -> None:
    """Else what they import would have no part in their digests."""
    for file in Path(app.ops.__path__[0]).rglob("*.py"):
        assert "from ." not in file.read_text(), file


def test_a_kernel_has_what_it_imports_in_its_digest() -> None:
    _, imported = sources._code("app.ops.second_pass.triton")
    assert {"app.ops.bank_kernels", "app.ops.depth_attention.triton", "app.ops.second_pass.attention"} <= {
        *imported
    }
