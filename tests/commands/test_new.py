"""``app new``: examples that work as they are written."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.cli import main
from app.commands.new import KINDS, TEMPLATES, class_name, module_name
from app.run.configuration import read_config
from tests.support.application import REPOSITORY

NAMES = {"architecture": "MyNet", "callback": "GradNoise", "data": "Poems", "task": "backwards"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_examples_are_short_and_whole() -> None:
    files = {path.name for path in TEMPLATES.iterdir() if path.is_file()} - {"__init__.py"}
    expected = set()
    for kind in KINDS.values():
        module = module_name(kind.example)
        expected |= {f"{module}.py", f"test_{module}.py"}
    assert files == expected | {"grulm.yaml"}
    for file in files:
        assert len((TEMPLATES / file).read_text().splitlines()) <= 40, file


def test_a_configuration_says_what_it_shows() -> None:
    path = TEMPLATES / "grulm.yaml"
    assert path.read_text().startswith("# ")
    assert read_config(path).data["model"]["init_args"]["network"]["class_path"] == "grulm.GRULM"


@pytest.mark.parametrize(
    ("name", "title", "module"),
    [
        ("GRULM", "GRULM", "grulm"),
        ("MyNet", "MyNet", "my_net"),
        ("my_net", "MyNet", "my_net"),
        ("GRULanguageModel", "GRULanguageModel", "gru_language_model"),
        ("RWKV7", "RWKV7", "rwkv7"),
    ],
)
def test_files_are_named_after_the_class(name: str, title: str, module: str) -> None:
    assert class_name(name) == title
    assert module_name(title) == module


@pytest.mark.stress
@pytest.mark.process
def test_the_tests_of_what_was_written_pass(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, name in NAMES.items():
        assert main(["new", kind, name]) == 0
    assert capsys.readouterr().out.splitlines()[:5] == [
        "wrote    my_net.py",
        "wrote    my_net.yaml",
        "wrote    test_my_net.py",
        "next     python -m pytest test_my_net.py",
        "         app fit my_net.yaml --trust_imports my_net",
    ]
    for path in folder.iterdir():
        assert not any(kind.example in path.read_text() for kind in KINDS.values()), path
        assert not any(module_name(kind.example) in path.read_text() for kind in KINDS.values()), path
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "11 passed" in result.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["architecture", "3x"], "'3x' is no name for a class"),
        (["architecture", "My-Net"], "'My-Net' is no name for a class"),
        (["data", "../Poems"], "'../Poems' is no name for a class"),
        (["data", "X" * 61], "is no name for a class; write up to 60 letters"),
        (["architecture", "Tensor"], "'Tensor' has a meaning in the example itself"),
        (["callback", "Class"], "'Class' has a meaning in the example itself"),
        (["data", "Torch"], "torch.py would hide the installed module torch"),
        (["architecure", "MyNet"], "there is no kind 'architecure'; did you mean 'architecture'?"),
        (["network", "MyNet"], "there is no kind 'network'; did you mean 'architecture'?"),
        (["architecture"], "the following arguments are required: NAME"),
    ],
)
def test_a_name_that_will_not_do(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["new", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert list(folder.iterdir()) == []


def test_nothing_is_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "test_my_net.py").write_text("mine")
    assert main(["new", "architecture", "MyNet"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: test_my_net.py: already there, and nothing is overwritten;"
    )
    assert [path.name for path in folder.iterdir()] == ["test_my_net.py"]
    assert (folder / "test_my_net.py").read_text() == "mine"


def test_a_folder_that_takes_nothing_more(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        assert main(["new", "architecture", "MyNet"]) == 5
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert len(capsys.readouterr().err.splitlines()) == 1
