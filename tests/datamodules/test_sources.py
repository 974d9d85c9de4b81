"""Where texts come from."""

import sys
import sysconfig
from pathlib import Path

import pytest

from app.run.errors import DataError
from datamodules.sources import open_source, stdlib_source
from datamodules.text import summarise


def test_stdlib_is_large_ascii_and_deterministic() -> None:
    first = summarise(stdlib_source(full=False).pieces())
    assert first.n_characters > 1_000_000
    assert first.alphabet.isascii()
    assert "\n" in first.alphabet
    assert 90 <= len(first.alphabet) <= 128
    assert summarise(stdlib_source(full=False).pieces()) == first


def test_stdlib_holds_standard_modules_only() -> None:
    source = stdlib_source(full=False)
    modules = [path.stem for path in source.files]
    assert modules == sorted(modules)
    assert {"argparse", "typing"} <= set(modules) <= sys.stdlib_module_names
    assert source.details == {"python": sys.version.split()[0]}


def test_stdlib_full_leaves_out_tests_and_installed_packages() -> None:
    root = Path(sysconfig.get_path("stdlib"))
    source = stdlib_source(full=True)
    relative = [path.relative_to(root).as_posix() for path in source.files]
    assert "json/decoder.py" in relative
    assert "argparse.py" in relative
    parts = {part for name in relative for part in name.split("/")[:-1]}
    assert not parts & {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    assert set(stdlib_source(full=False).files) < set(source.files)


def test_a_python_without_its_source_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match="stdlib found no Python source"):
        stdlib_source(full=False)


def test_the_default_is_stdlib() -> None:
    assert open_source(None, "unused").name == "stdlib"
    assert open_source("stdlib_full", "unused").name == "stdlib_full"
