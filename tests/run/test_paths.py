"""What a person types as a path."""

import argparse
import getpass
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app import cli
from app.commands import validate
from app.run import arguments, paths
from app.run.errors import ConfigurationError
from datamodules import CharDataModule, TextDataModule, WikiTextDataModule


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of its own; the current folder is another one."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_home_folders(home: Path) -> None:
    assert paths.typed_path("~") == str(home)
    assert paths.typed_path("~/a/~b") == f"{home}/a/~b"
    assert paths.typed_path(f"~{getpass.getuser()}/x") == os.path.expanduser(f"~{getpass.getuser()}") + "/x"
    for plain in ("a", "./~x", "/a/~", "auto", "gpt_char", "a b", "x~"):
        assert paths.typed_path(plain) == plain


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "~nobody-here/x",
            "~nobody-here/x: there is no user 'nobody-here'; write the path out, or ./~nobody-here/x",
        ),
        ("a\0b", "'a\\x00b': holds a NUL character"),
        ("x" * 256, "a name of 256 bytes"),
        ("~/" + "x" * 256, "a name of 256 bytes"),
        ("x/" * 2100, "a path of"),
        ("\udcff", "is not UTF-8"),
    ],
)
def test_what_is_no_path(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        paths.typed_path(text, "--resume")
    assert said in str(refused.value)
    assert str(refused.value).startswith("--resume ")
    assert str(refused.value).isprintable()


def test_the_flags_of_a_launch(home: Path) -> None:
    launch = arguments.read(
        ["-c", "~/a.yaml", "--config=~/b.yaml", "--run_dir", "~/r", "--resume=auto", "--init_from=~/i"]
    )
    assert launch.configs == [f"{home}/a.yaml", f"{home}/b.yaml"]
    assert (launch.run_dir, launch.resume, launch.init_from) == (f"{home}/r", "auto", f"{home}/i")
    for flag in arguments.PATH_FLAGS:
        with pytest.raises(ConfigurationError, match=f"^--{flag} ~nobody-here: there is no user"):
            arguments.read([f"--{flag}=~nobody-here"])
    assert {*arguments.LAUNCH_FLAGS} - {*arguments.PATH_FLAGS} == {"trust_imports", "resume_inexact"}


#: command lines that name something which is not there, in the home folder
COMMANDS = (
    ("fit", "--config=~/gone"),
    ("fit", "--resume=~/gone"),
    ("fit", "--config=gpt_char", "--init_from=~/gone"),
    ("prepare", "--config=~/gone"),
    ("validate", "~/gone"),
    ("test", "~/gone"),
    ("generate", "~/gone"),
    ("compare", "~/gone"),
    ("report", "~/gone"),
    ("trace", "~/gone", "--text=a"),
    ("gamma", "~/gone"),
    ("crystallize", "~/gone"),
    ("verify", "~/gone"),
)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_expands_the_home_folder(
    home: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    assert f"{home}/gone: " in capsys.readouterr().err
    assert cli.main([word.replace("~/gone", "x" * 300) for word in words]) == 2
    assert "a name of 300 bytes, and a name has at most 255" in capsys.readouterr().err
    assert not list(home.iterdir())


def _parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for name in cli.COMMANDS:
        module: Any = importlib.import_module(f"app.commands.{'validate' if name == 'test' else name}")
        if hasattr(module, "command_parser"):
            yield name, module.command_parser()


#: options that are texts and name no file
TEXTS = {
    "name",
    "kind",
    "shell",
    "--prompt",
    "--text",
    "--checkpoint",
    "--device",
    "--trust_imports",
    "--model",
    "--until",
    "--with",
    "--at",
    "--kinds",
    "--tasks",
    "--to",
    "--precision",
    "--paths",
    "--sweep",
    "--op",
    "--seeds",
    "--verify",
}


def test_no_option_that_names_a_file_is_forgotten() -> None:
    """``--model`` of crystallize is a path behind ``hf:``, which is looked at where that is taken off."""
    names = set()
    for command, parser in _parsers():
        for action in parser._actions:
            name = (action.option_strings or [action.dest])[-1]
            names.add(name)
            if action.nargs != 0 and action.type is None:
                assert name in TEXTS, f"app {command} {name}: a text, or a path without type=typed_path?"
    assert {"run", "runs", "checkpoint", "--output", "--out_dir", "--file", "--data", "--runs"} <= names
    assert not hasattr(validate, "command_parser")  # a launch's command line, and its run


def test_the_data_of_a_configuration(home: Path) -> None:
    text = home / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 20)
    char = CharDataModule(path="~/text.txt", block_size=8)
    assert char.check_source().fingerprint["n_characters"] == text.stat().st_size
    words: dict[str, Any] = dict(tokenizer="char", block_size=8, cache_dir="~/prepared")
    first = TextDataModule(path="~/text.txt", **words).check_source()
    (saved,) = (home / "prepared").glob("text-*/tokenizer.json")
    words["tokenizer_path"] = f"~/{saved.relative_to(home)}"
    (home / "wiki").mkdir()
    for split in ("train", "valid", "test"):
        (home / "wiki" / f"{split}.txt").write_text(text.read_text() + split)
    second = WikiTextDataModule(data_dir="~/wiki", **words).check_source()
    assert first.tokenizer.hash == second.tokenizer.hash
    assert not list(Path.cwd().iterdir()), "nothing in a folder that is called ~"


@pytest.mark.parametrize("name", ["path", "data_dir", "cache_dir", "tokenizer_path"])
def test_data_that_cannot_be_a_path_is_refused_with_the_other_problems(name: str) -> None:
    owner: Any = CharDataModule if name in ("path", "data_dir") else TextDataModule
    values = {"path": "text.txt", "block_size": 0, name: "~nobody-here/x"}
    with pytest.raises(ConfigurationError) as refused:
        owner(**values)
    by_name = {problem.split(" = ")[0]: problem for problem in refused.value.problems}
    assert by_name["block_size"].startswith("block_size = 0: ")
    assert by_name[name].startswith(f"{name} = '~nobody-here/x': there is no user")
