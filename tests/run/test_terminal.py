"""Lines for a person on terminals of several widths, and elsewhere."""

import io
import sys

import pytest

from app.run import terminal


class Screen(io.StringIO):
    """A terminal that keeps what is printed on it."""

    def isatty(self) -> bool:
        return True


def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    made = Screen()
    monkeypatch.setattr(sys, "stdout", made)
    return made


def test_a_fact_is_broken_between_words_and_stands_under_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    shown = screen(monkeypatch)
    terminal.say("data", "source stdlib: 4,661,285 characters, 96 symbols; licence PSF-2.0")
    terminal.say("next", f"app validate {'long/' * 14}run")
    assert shown.getvalue().splitlines() == [
        "data     source stdlib: 4,661,285 characters, 96 symbols;",
        "         licence PSF-2.0",
        "next     app validate",
        f"         {'long/' * 14}run",  # a path stays whole: it is to be copied
    ]


def test_a_file_gets_whole_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    terminal.say("data", "word " * 40)
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize(("columns", "width"), [("120", 120), ("", 80), ("nonsense", 80), ("3", 40)])
def test_width(columns: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    screen(monkeypatch)
    assert terminal.columns() == width


@pytest.mark.parametrize(("name", "is_live"), [("xterm-256color", True), ("dumb", False), ("", False)])
def test_what_can_be_drawn_on(name: str, is_live: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", name)
    screen(monkeypatch)
    assert terminal.is_live() is is_live


def test_an_announcement_gives_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal.announce("reading the text")
    terminal.announced()
    assert capsys.readouterr().out == "start    reading the text\n"
    monkeypatch.setenv("TERM", "xterm")
    shown = screen(monkeypatch)
    terminal.announce("reading the text")
    assert shown.getvalue().endswith("reading the text …\r")
    terminal.announced()
    assert shown.getvalue().endswith("\r\x1b[2K")


def test_clock() -> None:
    assert [terminal.clock(seconds) for seconds in (0, 75, 4000)] == ["0:00", "1:15", "1:06:40"]
