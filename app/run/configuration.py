"""Strict YAML: a configuration is data, read and checked before anything heavy is imported.

PyYAML takes the last of two equal keys, expands aliases without limit, builds objects from tags and reads
``1e-3`` as text. Here the first three are errors that name file and line, and the last is a number.
"""

import difflib
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml

from app.run.errors import ConfigurationError
from app.run.synonyms import synonym

MAX_BYTES = 256 << 10  # a configuration has a few kilobytes; this much still takes under 3 s
MAX_DEPTH = 64
# Where a run lives is decided per launch; a saved configuration that is used again must not bring its own.
LAUNCH_KEYS = ("run_dir", "resume", "init_from", "trust_imports", "accept_data_change", "resume_inexact")

#: folder of the studies among the shipped configurations
STUDIES = "study"

_PREFIX = "tag:yaml.org,2002:"
_TAGS = frozenset(_PREFIX + name for name in ("null", "bool", "int", "float", "str", "seq", "map"))
_FLOAT = re.compile(
    r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_INT = re.compile(r"^[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)$")
_REMEDIES = (
    ("'\\t'", "indent with spaces, not tabs"),
    (
        "mapping values are not allowed",
        "put quotes around a value that contains ': '; check the indentation",
    ),
    ("duplicate key", "keep one of the two"),
    ("aliases", "write the value out at each place"),
    ("tag", "remove the tag; plain values need none"),
    ("nested", "a configuration is never that deep; check the brackets"),
    ("single document", "remove the line '---' that starts the second document"),
)


class StrictLoader(yaml.SafeLoader):
    """Loader that refuses duplicate keys, aliases, anchors, tags beyond the core ones and absurd depth.

    Numbers such as ``1e-3`` are floats; dates, times such as ``1:30`` and what begins with a zero (``017``) stay text.
    Errors are ``yaml.YAMLError`` with a position.
    """

    def __init__(self, stream: str | bytes | IO[Any]):
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Composes one node after a look at its event."""
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.composer.ComposerError(None, None, "found aliases or anchors", event.start_mark)
        tag = getattr(event, "tag", None)
        if tag is not None and tag not in _TAGS:
            raise yaml.composer.ComposerError(None, None, f"found the tag {tag!r}", event.start_mark)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(
                None, None, f"values are nested more than {MAX_DEPTH} deep", event.start_mark
            )
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.MappingNode):
            _require_unique(node)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node; what the parser raises where a text is not what it looks like or its tag says."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, OverflowError) as error:
            kind = node.tag.removeprefix(_PREFIX)
            raise yaml.constructor.ConstructorError(
                None, None, f"found {node.value!r:.40}, which is no {kind}", node.start_mark
            ) from error

    def scan_flow_scalar_non_spaces(self, double: bool, start_mark: yaml.Mark) -> list[str]:
        """A piece of a quoted text, whose escapes must be characters."""
        try:
            return super().scan_flow_scalar_non_spaces(double, start_mark)
        except (ValueError, OverflowError) as error:
            raise yaml.scanner.ScannerError(
                "while scanning a quoted text", start_mark, "found an escape of no character", self.get_mark()
            ) from error


# Own table of patterns: without dates, merge keys and the numbers of YAML 1.1, in which `1e-3` is a text, `1:30` is 90
# and `017` is 15.
StrictLoader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in entries
        if tag.removeprefix(_PREFIX) not in ("float", "int", "timestamp", "merge", "value")
    ]
    for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
StrictLoader.add_implicit_resolver(_PREFIX + "float", _FLOAT, list("-+0123456789."))
StrictLoader.add_implicit_resolver(_PREFIX + "int", _INT, list("-+0123456789"))


def _require_unique(node: yaml.MappingNode) -> None:
    seen: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.composer.ComposerError(None, None, "a key must be a plain word", key.start_mark)
        name = (key.tag, key.value)
        if name in seen:
            raise yaml.composer.ComposerError(
                None, None, f"duplicate key {key.value!r}, first on line {seen[name]}", key.start_mark
            )
        seen[name] = key.start_mark.line + 1


@dataclass(frozen=True)
class ConfigFile:
    """A configuration file that has been read.

    Attributes:
        path: where it was read from.
        data: its content as written, launch keys included.
        positions: line, counted from 1, of every key; nested keys are joined by dots and list entries
            numbered: ``trainer.callbacks.0.class_path``.
    """

    path: Path
    data: dict[str, Any]
    positions: dict[str, int] = field(repr=False)

    def where(self, key: str) -> str:
        """``file, line n`` for a dotted key, or for the nearest enclosing key that is in the file."""
        while key and key not in self.positions:
            key = key.rpartition(".")[0]
        return f"{self.path}, line {self.positions[key]}" if key else str(self.path)


def read_config(path: str | os.PathLike[str]) -> ConfigFile:
    """Reads and checks one configuration file; nothing in it is imported or built.

    Raises:
        ConfigurationError: with file, line, column, the problem and a remedy.
    """
    text = _read_text(Path(path))
    try:
        loader = StrictLoader(text)
        node = loader.get_single_node()
        data = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ConfigurationError(_explain(path, error)) from error
    if node is None or data is None:
        raise ConfigurationError(f"{path}: is empty; write `key: value` lines, or leave the option out")
    if not isinstance(data, dict):
        kind = "a list" if isinstance(data, list) else "a single value"
        raise ConfigurationError(f"{path}: holds {kind}, must hold `key: value` lines")
    positions: dict[str, int] = {}
    _collect_positions(node, "", positions)
    return ConfigFile(Path(path), data, positions)


def strict_load(stream: str | bytes | IO[Any]) -> Any:
    """Loads one YAML value strictly; the loader for the argument parser.

    The launch keys (:data:`LAUNCH_KEYS`) are dropped from a top-level mapping. A text
    such as ``{a, b}`` or ``a:`` is no mapping of nothing but the text that was typed.

    Raises:
        yaml.YAMLError: for whatever :class:`StrictLoader` refuses.
    """
    content = stream if isinstance(stream, str | bytes) else stream.read()
    text = content.decode() if isinstance(content, bytes) else content
    value = yaml.load(text, Loader=StrictLoader)
    if not isinstance(value, dict):
        return value
    if value and all(entry is None for entry in value.values()):
        words = set(text.strip().strip("{}").replace(" ", "").split(","))
        if text.strip() == f"{next(iter(value))}:" or words == {str(key) for key in value}:
            return text
    return {key: entry for key, entry in value.items() if key not in LAUNCH_KEYS}


def typed_value(text: str) -> Any:
    """A value of the command line as the parser takes it: what is no YAML is a text."""
    try:
        return strict_load(text)
    except yaml.YAMLError:
        return text


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """For a "did you mean": the candidate that others call ``name``, or else the one most like it; None without one."""
    known = list(candidates)
    return synonym(name, known) or next(iter(difflib.get_close_matches(name, known, n=1)), None)


def shipped_directory() -> Path:
    """The shipped configurations: package data of an installation, ``configs/`` of a source checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def shipped_names(directory: str | os.PathLike[str]) -> list[str]:
    """Names of the configurations below a directory, as :func:`find_config` takes them, sorted; studies are none."""
    root = Path(directory)
    names = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
    return sorted(name for name in names if not name.startswith(f"{STUDIES}/"))


def shipped_studies() -> list[str]:
    """Names of the shipped studies, sorted."""
    return sorted(path.stem for path in (shipped_directory() / STUDIES).glob("*.yaml"))


def find_config(name: str | os.PathLike[str], directory: str | os.PathLike[str] | None = None) -> Path:
    """Finds a configuration by path or by shipped name.

    Args:
        name: an existing file, or a name such as ``tilelli_banks4`` or ``hardware/ddp``, with or without
            ``.yaml``.
        directory: the shipped configurations; :func:`shipped_directory` by default.

    Raises:
        ConfigurationError: when there is neither; the nearest names are listed.
    """
    text = os.fspath(name)
    path = Path(text)
    root = Path(directory) if directory is not None else shipped_directory()
    names = shipped_names(root)
    bare = text.removesuffix(".yaml")
    if path.exists() and not (path.is_dir() and bare in names):
        return path
    if bare in names:
        return root / f"{bare}.yaml"
    alike = difflib.get_close_matches(bare.removeprefix("configs/"), names, n=3)
    alike += [other for other in names if other.rpartition("/")[2] == path.stem and other not in alike]
    hint = f"did you mean {' or '.join(alike)}?" if alike else f"shipped: {', '.join(names) or 'none'}"
    raise ConfigurationError(f"--config {text}: neither a file nor a shipped configuration; {hint}")


def _read_text(path: Path) -> str:
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            is_run = (path / "config.yaml").is_file()
            remedy = f"to go on with a run write --resume {path}" if is_run else "name a YAML file in it"
            raise ConfigurationError(f"{path}: is a directory; {remedy}")
        if not stat.S_ISREG(status.st_mode):
            raise ConfigurationError(f"{path}: is not a regular file; write the configuration into one")
        if status.st_size > MAX_BYTES:
            raise ConfigurationError(
                f"{path}: has {status.st_size:,} bytes, at most {MAX_BYTES:,} are read; name a configuration"
            )
        data = path.read_bytes()
    except FileNotFoundError:
        alike = nearest(path.stem, shipped_names(shipped_directory()))
        hint = f"did you mean the shipped {alike}?" if alike else "check the path"
        raise ConfigurationError(f"{path}: no such file; {hint}") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8, or name a YAML file"
        ) from None


def _explain(path: str | os.PathLike[str], error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.reader.ReaderError):
        return (
            f"{path}: character #x{error.character:x} at position {error.position} cannot stand in YAML;"
            " save the file as plain UTF-8 text"
        )
    place, problem = os.fspath(path), str(error).splitlines()[0]
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        if mark is not None:
            place = f"{place}, line {mark.line + 1}, column {mark.column + 1}"
        problem = " ".join(part for part in (error.context, error.problem) if part)
    remedy = next(
        (remedy for sign, remedy in _REMEDIES if sign in problem),
        "check indentation, quotes and brackets on this line and the one above",
    )
    return f"{place}: {problem}; {remedy}"


def _collect_positions(node: yaml.Node, prefix: str, positions: dict[str, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            positions[name] = key.start_mark.line + 1
            _collect_positions(value, f"{name}.", positions)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            name = f"{prefix}{index}"
            positions[name] = value.start_mark.line + 1
            _collect_positions(value, f"{name}.", positions)
