"""Options for a person: what each means, its range and its default, as constructors and docstrings state them."""

import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import docstring_parser

from app import options
from app.training.options.types import in_words

WIDTH = 80
#: where the text of a row begins
COLUMN = 31


def meanings(owner: type) -> dict[str, str]:
    """What the docstrings of a class, of its bases and of the classes whose options it takes say of each option."""
    found: dict[str, str] = {}
    for source, renamed in options.sources_of(owner):
        found |= {renamed.get(name, name): text for name, text in meanings(source).items()}
    for base in reversed(owner.__mro__):
        described = docstring_parser.parse(vars(base).get("__doc__") or "")
        found |= {entry.arg_name: plain(entry.description or "") for entry in described.params}
    return found


def headline(owner: type) -> str:
    """The first sentence of a class's docstring."""
    return plain((inspect.getdoc(owner) or "").split("\n\n")[0]).removesuffix(".")


def plain(text: str) -> str:
    """A docstring's text on one line, without its markup."""
    text = re.sub(r":\w+:`~?([^`<]*?)(?:\s*<[^`]*>)?`", lambda match: match[1].rsplit(".", 1)[-1], text)
    return " ".join(text.replace("``", "").replace("`", "").split())


class Entry(NamedTuple):
    """An option for a person.

    Attributes:
        name: as it is typed.
        about: its meaning, with range and default.
        choices: its values, where it has a few; else empty.
    """

    name: str
    about: str
    choices: tuple[str, ...] = ()


def entries(prefix: str, owner: type, without: Iterable[str] = (), brief: bool = False) -> Iterator[Entry]:
    """The options of a class.

    Args:
        prefix: what stands before the name, such as ``--model.``.
        owner: the class.
        without: options to leave out.
        brief: the first clause of each meaning alone.
    """
    said = meanings(owner)
    for name, parameter in options.options_of(owner).items():
        if name not in without:
            about = _about(parameter, said.get(name, ""), brief)
            yield Entry(f"{prefix}{name}", about, choices_in(parameter.annotation))


def choices_in(annotation: Any) -> tuple[str, ...]:
    """The values of a type that has a few; else none."""
    if annotation is bool:
        return ("true", "false")
    if get_origin(annotation) is Literal:
        return tuple(x if isinstance(x, str) else options.shown(x) for x in get_args(annotation))
    parts = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return choices_in(parts[0])
    return (
        tuple(choice for part in parts for choice in choices_in(part))
        if get_origin(annotation) in (Union, UnionType)
        else ()
    )


def rows(listed: Iterable[Entry]) -> Iterator[str]:
    """A row per option, wrapped where it has to be."""
    for entry in listed:
        yield from row(entry.name, entry.about)


def row(name: str, text: str, column: int = COLUMN) -> Iterator[str]:
    """A name with a text beside it, wrapped."""
    lines = textwrap.wrap(text, WIDTH - column) or [""]
    if len(name) > column - 3:
        yield f"  {name}"
    else:
        yield f"  {name:<{column - 2}}{lines.pop(0)}".rstrip()
    yield from (" " * column + line for line in lines)


def _about(parameter: inspect.Parameter, meaning: str, brief: bool) -> str:
    meaning = _first_clause(meaning) if brief else meaning.removesuffix(".")
    notes = [words for words in (_range_in(parameter.annotation),) if words]
    if parameter.default is parameter.empty:
        notes.append("required")
    elif parameter.default is not None:
        notes.append(
            options.shown(parameter.default) if brief else f"default {options.shown(parameter.default)}"
        )
    return f"{meaning} ({'; '.join(notes)})" if notes else meaning


def _range_in(annotation: Any) -> str:
    """The values of a type in few words; nothing where any will do."""
    if get_origin(annotation) is Annotated:
        base, *metadata = get_args(annotation)
        ranges = [_symbols(str(entry)) for entry in metadata if isinstance(entry, options.Within)]
        return ", ".join(ranges) or _range_in(base)
    words = "" if get_origin(annotation) in (Union, UnionType) else in_words(annotation)
    if words.startswith("one of "):
        return words.removeprefix("one of ").replace(", ", "|")
    return next((found for part in get_args(annotation) if (found := _range_in(part))), "")


def _first_clause(text: str, width: int = WIDTH - COLUMN) -> str:
    """As much of a text as one line has room for, but whole clauses."""
    text = re.split(r"[;(]|\. |, see |: ", text)[0].strip().removesuffix(".")
    while len(text) > width and ", " in text:
        text = text.rpartition(", ")[0]
    return text


def _symbols(words: str) -> str:
    """``at least 1`` → ``≥ 1``."""
    return re.sub(
        r"^at least ", "≥ ", re.sub(r"^positive$", "> 0", re.sub(r"^above ", "> ", words))
    ).removeprefix("in ")


def listing(title: str, classes: Mapping[str, type]) -> Iterator[str]:
    """Classes, one line each."""
    yield title
    column = 4 + max(map(len, classes))
    for name, owner in classes.items():
        yield from row(name, _first_clause(headline(owner), WIDTH - column), column)
