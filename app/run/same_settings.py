"""Whether a command line asks for anything that a finished run did not have, told without the framework."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.run.arguments import Launch
from app.run.configuration import LAUNCH_KEYS, ConfigFile, strict_load

#: said of a launch and not of a run


def digest(configuration: str) -> str:
    """What the manifest keeps of a resolved configuration, to know the file again."""
    return hashlib.sha256(configuration.encode()).hexdigest()


def asks_for_nothing_new(
    launch: Launch, given: Sequence[ConfigFile], resolved: Path, recorded: str | None
) -> bool:
    """Whether files and options only repeat what the run's own configuration says.

    A short form that only the parser understands counts as something new: then the parser decides.

    Args:
        launch: the command line.
        given: the configuration files that it names.
        resolved: the run's ``config.yaml``.
        recorded: :func:`digest` of it when it was written; an edited file asks for something new.
    """
    try:
        text = resolved.read_text()
        configuration = strict_load(text)
        overrides = {key: strict_load(value) for key, value in _options(launch.overrides)}
    except Exception:  # whatever is wrong with a file or a value, the parser will say it
        return False
    if digest(text) != recorded or not isinstance(configuration, dict):
        return False
    files = [{k: v for k, v in file.data.items() if k not in LAUNCH_KEYS} for file in given]
    return all(_is_said(file, configuration) for file in files) and all(
        _is_said(value, _at(configuration, key)) for key, value in overrides.items()
    )


def _options(words: Sequence[str]) -> list[tuple[str, str]]:
    """Key and text of every ``--key value`` and ``--key=value``.

    Raises:
        ValueError: a word that is neither.
    """
    found, rest = [], iter(words)
    for word in rest:
        if not word.startswith("--"):
            raise ValueError(word)
        key, equals, value = word[2:].partition("=")
        found.append((key, value if equals else next(rest)))
    return found


def _at(configuration: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key.

    Returns:
        The mapping itself where there is none, which no value of an option equals.
    """
    value: Any = configuration
    for name in key.split("."):
        if not isinstance(value, dict) or name not in value:
            return configuration
        value = value[name]
    return value


def _is_said(given: Any, resolved: Any) -> bool:
    """Whether all of ``given`` stands in ``resolved``, which also holds the defaults."""
    if isinstance(given, dict):
        return isinstance(resolved, dict) and all(
            name in resolved and _is_said(value, resolved[name]) for name, value in given.items()
        )
    if isinstance(given, list):
        return (
            isinstance(resolved, list) and len(given) == len(resolved) and all(map(_is_said, given, resolved))
        )
    return type(given) is type(resolved) and bool(given == resolved)
