"""Where texts come from."""

import os
import sys
import sysconfig
from pathlib import Path

import pytest

from app.run.errors import DataError
from datamodules.sources import open_source, path_source, stdlib_source
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
    assert open_source(None, None, "unused").name == "stdlib"
    assert open_source("stdlib_full", None, "unused").name == "stdlib_full"


def test_a_file_may_have_any_name(tmp_path: Path) -> None:
    path = tmp_path / "corpus.weird"
    path.write_text("text")
    source = open_source(None, str(path), "unused")
    assert "".join(source.pieces()) == "text"
    assert "".join(source.pieces()) == "text"  # a second pass


def test_home_folders_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "corpus.txt").write_text("text")
    assert "".join(open_source(None, "~/corpus.txt", "unused").pieces()) == "text"


def test_text_files_of_a_folder_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "sub/c.TXT", ".hidden.txt", ".git/d.txt", "image.png", "e.rst"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    assert "".join(path_source(tmp_path).pieces()) == "a.md\nb.txt\ne.rst\nsub/c.TXT"


def test_a_folder_without_text_files(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"no text files in this folder; files ending in \.txt") as caught:
        path_source(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.timeout(10)
def test_a_pipe_in_a_folder_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(DataError, match=r"pipe\.txt: a named pipe"):
        list(path_source(tmp_path).pieces())


def test_a_missing_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        path_source(tmp_path / "absent")
