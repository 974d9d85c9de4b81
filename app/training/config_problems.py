"""Every mistake of a configuration at once, each with its place.

The parser stops at the first thing it does not understand. When it has stopped, every value is put before
it again, alone, so that all mistakes are reported together and each is known by key, file and line.
"""

import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from app.run.arguments import Launch
from app.run.configuration import LAUNCH_KEYS, ConfigFile, nearest, strict_load
from app.run.errors import ConfigurationError

#: keys that mean something in the framework and nothing here, with the way to say it
REMEDIES = {
    "optimizer": "the module owns its optimizer; set model.init_args.optimizer and learning_rate",
    "lr_scheduler": "the module owns its schedule; set model.init_args.schedule and warmup_steps",
    "ckpt_path": "use --resume RUN to go on, or --init_from RUN for weights only",
    "seed_everything": "use seed",
}


@dataclass(frozen=True)
class Setting:
    """One value that a user has set.

    Attributes:
        path: keys from the top of the configuration; integers index lists.
        value: what it is set to.
        origin: where, for a person.
    """

    path: tuple[str | int, ...]
    value: Any
    origin: str

    @property
    def key(self) -> str:
        """Dotted key."""
        return ".".join(map(str, self.path))


def settings(files: Sequence[ConfigFile], launch: Launch) -> list[Setting]:
    """All values that files and command line set; of equal keys the last one counts."""
    found: dict[tuple[str | int, ...], Setting] = {}
    for file in files:
        for path, value in _leaves({k: v for k, v in file.data.items() if k not in LAUNCH_KEYS}, ()):
            key = ".".join(map(str, path))
            found[path] = Setting(path, value, file.where(key))
    words = iter(launch.overrides)
    for word in words:
        name, equals, text = word.partition("=")
        if not name.startswith("--"):
            continue
        value = _typed(text if equals else next(words, ""))
        keys: tuple[str | int, ...] = tuple(name.removeprefix("--").split("."))
        if keys in (("model",), ("data",)) and isinstance(value, str):
            keys = (*keys, "class_path")
        for path, leaf in _leaves(value, keys):
            found[path] = Setting(path, leaf, "command line")
    return list(found.values())


def _typed(text: str) -> Any:
    """A value of the command line as the parser will take it: what is no YAML is a text."""
    try:
        return strict_load(text)
    except yaml.YAMLError:
        return text


def find(
    parser: ArgumentParser, files: Sequence[ConfigFile], launch: Launch, first: str
) -> tuple[list[str], list[Setting]]:
    """All problems of a configuration that the parser refused, and the values at fault.

    Args:
        parser: the command's parser.
        files: configuration files, in order.
        launch: the command line.
        first: what the parser said, used where no value alone is at fault.
    """
    given = settings(files, launch)
    skeleton: dict[str, Any] = {}
    problems: list[str] = []
    wrong: list[Setting] = []
    for section in ("model", "data"):
        chosen = [s for s in given if s.path == (section, "class_path")]
        if not chosen:
            problems.append(
                f"{section}.class_path: is not set; name a configuration with --config, or a class"
            )
            continue
        attempt = {section: {"class_path": chosen[-1].value}}
        complaint = _try(parser, attempt)
        if complaint:
            problems.append(_message(chosen[-1], complaint, parser, given))
            wrong.append(chosen[-1])
        else:
            skeleton |= attempt
    sections = {action.dest.split(".")[0] for action in parser._actions}
    for section in dict.fromkeys(str(s.path[0]) for s in given):
        if section not in sections:
            place = next(
                (file.where(section) for file in reversed(files) if section in file.data), "command line"
            )
            problems.append(f"{section} ({place}): there is no such key{_hint(section, section, sections)}")
    for setting in given:
        section = str(setting.path[0])
        if section not in sections:
            wrong.append(setting)
            continue
        if setting.path in (("model", "class_path"), ("data", "class_path")):
            continue
        if section in ("model", "data") and section not in skeleton:
            continue
        complaint = _try(parser, _merged(skeleton, setting, given))
        if complaint:
            problems.append(_message(setting, complaint, parser, given))
            wrong.append(setting)
    return problems or [_plain(first)], wrong


def rest(parser: ArgumentParser, given: Sequence[Setting], wrong: Sequence[Setting]) -> Namespace | None:
    """What the parser makes of the values that are not at fault; None where it needs those that are.

    Callbacks are left out.
    """
    configuration: dict[str, Any] = {}
    for setting in given:
        if setting in wrong or "callbacks" in setting.path:
            continue
        node = configuration
        for key in map(str, setting.path[:-1]):
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                return None
        node[str(setting.path[-1])] = deepcopy(setting.value)
    try:
        return parser.parse_object(configuration)
    except ConfigurationError:
        return None


def in_doubt(parser: ArgumentParser, given: Sequence[Setting], wrong: Sequence[Setting]) -> set[str]:
    """Names of the arguments that the values at fault were meant for."""
    named = [(str(setting.path[-1]), _known(setting, parser, given)) for setting in wrong]
    return {nearest(name, known) or name for name, known in named}


def constructor_arguments(class_type: type) -> set[str]:
    """Names of all arguments that a class takes, through its bases."""
    names: set[str] = set()
    for base in class_type.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
            names |= {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    return names - {"self", "network"}


def _leaves(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    if isinstance(value, Mapping) and value:
        for key, entry in value.items():
            yield from _leaves(entry, (*path, str(key)))
    elif isinstance(value, list) and path[-1] == "callbacks":
        for index, entry in enumerate(value):
            yield from _leaves(entry, (*path, index))
    else:
        yield path, value


def _merged(skeleton: dict[str, Any], setting: Setting, given: list[Setting]) -> dict[str, Any]:
    """The smallest configuration that holds this one value: with the classes above it."""
    configuration: dict[str, Any] = {key: dict(value) for key, value in skeleton.items()}
    prefixes = [setting.path[:length] for length in range(1, len(setting.path))]
    above = [s for s in given if s.path[-1] == "class_path" and s.path[:-1] in prefixes]
    for one in (*above, setting):
        node: Any = configuration
        for position, key in enumerate(one.path[:-1]):
            following = one.path[position + 1]
            if isinstance(key, int):
                if not node:
                    node.append({})
                node = node[0]
                continue
            empty: Any = [] if isinstance(following, int) else {}
            node = node.setdefault(key, empty)
            if not isinstance(node, dict | list):
                return configuration
        last = one.path[-1]
        if isinstance(node, list):
            node.append(one.value)
        else:
            node[last] = one.value
    return configuration


def _try(parser: ArgumentParser, configuration: dict[str, Any]) -> str:
    """What the parser has against a configuration; missing sections are no complaint here."""
    try:
        parser.parse_object(configuration)
    except ConfigurationError as error:
        text = str(error)
        return "" if "are required" in text or "is required" in text else text
    return ""


_SIGNS = (
    re.compile(r"Importing '([^']+)' is not allowed"),
    re.compile(r"[Oo]ption '([^']+)'"),
    re.compile(r"Expected a (.+)\. Got value: (.*)"),
    re.compile(r"module '([^']*)' has no attribute '([^']*)'"),
    re.compile(r"Import path (\S+) does not correspond to a subclass of (\w+)"),
    re.compile(r"No module named '[^']*'"),
)


def _message(setting: Setting, complaint: str, parser: ArgumentParser, given: list[Setting]) -> str:
    where = f"{setting.key} ({setting.origin})"
    for line in complaint.splitlines():
        for number, sign in enumerate(_SIGNS):
            match = sign.search(line)
            if match is None or "NoneType" in line:
                continue
            if number == 0:
                return (
                    f"{where}: {match[1]!r} may not be imported; class paths must lie in app.training, callbacks or "
                    "datamodules; your own need --trust_imports PREFIX"
                )
            if number == 1:
                return f"{where}: there is no such key{_suggestion(setting, parser, given)}"
            if number == 2:
                return f"{where}: {setting.value!r} is not {_type_name(match[1])}"
            if number == 3:
                return f"{where}: there is no {match[2]} in {match[1]}{_class_hint(match[1], match[2])}"
            if number == 4:
                return f"{where}: {match[1]} is no {match[2]}"
            return f"{where}: {line.strip()}"
    return f"{where}: {_plain(complaint)}"


def _suggestion(setting: Setting, parser: ArgumentParser, given: Sequence[Setting]) -> str:
    return _hint(setting.key, str(setting.path[-1]), _known(setting, parser, given))


def _known(setting: Setting, parser: ArgumentParser, given: Sequence[Setting]) -> set[str]:
    """The keys that there are beside this one."""
    if "init_args" in setting.path:
        owner = setting.path[: setting.path.index("init_args")]
        class_type = _class_of(owner, given)
        return constructor_arguments(class_type) if class_type else set()
    prefix = ".".join(map(str, setting.path[:-1]))
    destinations = [action.dest for action in parser._actions]
    return {
        d.removeprefix(f"{prefix}.") if prefix else d.split(".")[0]
        for d in destinations
        if d.startswith(f"{prefix}." if prefix else "")
    }


def _hint(key: str, name: str, candidates: set[str]) -> str:
    if key in REMEDIES:
        return f"; {REMEDIES[key]}"
    meant = nearest(name, candidates)
    return (
        f"; did you mean {meant!r}?"
        if meant
        else f"; known: {', '.join(sorted(candidates))}"
        if candidates
        else ""
    )


def _class_hint(module: str, name: str) -> str:
    classes = {key for key, value in vars(sys.modules[module]).items() if inspect.isclass(value)}
    meant = nearest(name, classes)
    return f"; did you mean {meant!r}?" if meant else ""


def _class_of(owner: tuple[str | int, ...], given: Sequence[Setting]) -> type | None:
    """The class whose argument this is; it was imported when its class path was accepted; None if it was not."""
    for setting in reversed(given):
        if setting.path == (*owner, "class_path"):
            module, _, name = str(setting.value).rpartition(".")
            found = getattr(sys.modules.get(module), name, None)
            return found if inspect.isclass(found) else None
    return None


def _type_name(text: str) -> str:
    names = {
        "<class 'int'>": "an integer",
        "<class 'float'>": "a number",
        "<class 'str'>": "a text",
        "<class 'bool'>": "true or false",
    }
    if text.startswith("typing.Literal"):
        return "one of " + text.removeprefix("typing.Literal").strip("[]")
    return names.get(text, text)


def _plain(text: str) -> str:
    """A parser's message on one line."""
    line = "; ".join(part.strip() for part in text.splitlines() if part.strip())
    return re.sub(r'^Parser key "([^"]+)":;? ?', r"\1: ", line)
