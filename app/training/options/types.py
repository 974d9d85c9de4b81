"""One value of one option: whether its type takes it, and what the type is in words."""

import re
from collections.abc import Callable, Iterable
from copy import deepcopy
from datetime import timedelta
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from jsonargparse import ArgumentParser

from app.options import Said, Within
from app.run.configuration import typed_value

#: scalars and containers whose words are known; any other class is one that a configuration chooses
_WORDS = {
    int: "an integer",
    float: "a number",
    str: "a text",
    bool: "true or false",
    NoneType: "null",
    timedelta: "a duration",
    dict: "a mapping",
    list: "a list",
}


class TypeProblem(Exception):
    """A value that its option's type does not take; the message says what it takes."""


def parsed(annotation: Any, value: Any, text: str | None = None) -> Any:
    """A value as the parser takes it.

    Args:
        annotation: type of the option.
        value: of a file.
        text: of the command line, in place of it.

    Raises:
        TypeProblem: with what it takes, in words.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=annotation)
    given = deepcopy(value) if text is None else text  # the parser writes into lists
    try:
        found = (
            parser.parse_object({"value": value}) if text is None else parser.parse_args([f"--value={text}"])
        )
    except Exception as error:  # of any library that a type asks
        raise TypeProblem(in_words(annotation)) from error
    if _is_misread(found.value, given):
        raise TypeProblem(in_words(annotation))
    return found.value


def _is_misread(found: Any, given: Any) -> bool:
    """Whether the parser has made a number of a text that is none: it knows YAML 1.1, in which ``1:30`` is 90."""
    if isinstance(found, int | float):
        return isinstance(given, str) and isinstance(typed_value(given), str)
    if isinstance(found, list | tuple):
        entries = typed_value(given) if isinstance(given, str) else given
        return isinstance(entries, list) and any(map(_is_misread, found, entries))
    return False


def in_words(annotation: Any) -> str:
    """A type for a person: ``an integer (at least 1)``, ``one of adamw, sgd, muon``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        if said := next((entry.words for entry in arguments[1:] if isinstance(entry, Said)), ""):
            return said
        ranges = [str(entry) for entry in arguments[1:] if isinstance(entry, Within)]
        return in_words(arguments[0]) + (f" ({', '.join(ranges)})" if ranges else "")
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else repr(arguments[0])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(in_words(member) for member in arguments))
    if origin is tuple and arguments[-1:] != (Ellipsis,):
        return f"a list of {len(arguments)} {plural(in_words(arguments[0]))}"
    if origin is dict:
        return "a mapping"
    if origin is Callable:
        return f"{in_words(arguments[-1])} of your own ({{class_path: …}})"
    if arguments and origin is not None and issubclass(_class(origin), Iterable):
        return f"a list of {plural(in_words(arguments[0]))}"
    if annotation in _WORDS:
        return _WORDS[annotation]
    name = getattr(annotation, "__name__", str(annotation))
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def plural(words: str) -> str:
    """``an integer (at least 1)`` → ``integers (at least 1)``."""
    return re.sub(r"^an? (\w+)", r"\1s", words)


def class_in(annotation: Any) -> type | None:
    """The class that a configuration chooses a subclass of, where a type has one: ``list[Callback] | None`` has."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return class_in(arguments[0])
    if origin is Literal:
        return None
    if origin is Callable:  # what makes an object of the class that it returns
        return class_in(arguments[-1])
    if origin in (Union, UnionType) or (origin is not None and issubclass(_class(origin), Iterable)):
        return next((found for member in arguments if (found := class_in(member)) is not None), None)
    is_chosen = isinstance(annotation, type) and origin is None and annotation not in _WORDS
    return annotation if is_chosen and annotation.__module__ != "builtins" else None


def takes_mapping(annotation: Any) -> bool:
    """Whether a value may be any mapping, whose keys are no options: ``dict[str, Any] | None``."""
    if annotation is dict or get_origin(annotation) is dict:
        return True
    return get_origin(annotation) in (Union, UnionType) and any(map(takes_mapping, get_args(annotation)))


def n_supplied(annotation: Any) -> int:
    """Arguments that whoever makes an object of the class in a type gives it, first of all: of an optimizer one."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Callable:
        return len(arguments[0])
    return max(map(n_supplied, arguments), default=0) if origin in (Union, UnionType, Annotated) else 0


def _class(origin: Any) -> type:
    return origin if isinstance(origin, type) else object
