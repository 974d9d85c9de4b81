"""Mistakes in the command lines that are read without the framework."""

import pytest

from app.cli import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "generate RUN --n_tokens 5",
            "unrecognized arguments: --n_tokens 5; did you mean --tokens? see app generate --help",
        ),
        (
            "generate RUN --topk=5",
            "unrecognized arguments: --topk=5; did you mean --top_k? see app generate --help",
        ),
        ("compare RUN --qqqq", "unrecognized arguments: --qqqq; see app compare --help"),
        ("report RUN --output", "argument --output: expected one argument; see app report --help"),
        ("gamma", "the following arguments are required: CHECKPOINT; see app gamma --help"),
    ],
)
def test_a_mistake_is_one_line(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    assert capsys.readouterr().err == f"error: app {words.split()[0]}: {said}\n"


@pytest.mark.parametrize("command", ["validate", "test", "generate", "prepare", "study", "fit"])
def test_help_stands_wherever_it_is_asked_for(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "anything", "--help"]) == 0
    assert capsys.readouterr().out.startswith(("usage: app", "Usage: app", "Trains", "app "))
