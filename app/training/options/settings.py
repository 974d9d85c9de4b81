"""Every value that configuration files and a command line set, each with its place."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.run.arguments import Launch
from app.run.configuration import LAUNCH_KEYS, ConfigFile, typed_value

Path = tuple[str | int, ...]
#: sections whose class stands in ``class_path`` and whose options may be written without ``init_args``
CHOSEN = ("model", "data")
#: a class that is chosen within one of them
NETWORK: Path = ("model", "init_args", "network")
#: options that take one of our names or a class of the user's own
NAME_OR_CLASS: tuple[Path, ...] = (("model", "init_args", "optimizer"), ("model", "init_args", "schedule"))


@dataclass(frozen=True)
class Setting:
    """One value that a user has set.

    Attributes:
        path: keys from the top of the configuration; integers index lists.
        value: what it is set to.
        origin: where, for a person.
        order: of the file, or of the command line after all files.
        text: as it was typed; None in a file.
    """

    path: Path
    value: Any
    origin: str
    order: int = 0
    text: str | None = None

    @property
    def key(self) -> str:
        return ".".join(map(str, self.path))

    @property
    def place(self) -> str:
        """Key and origin, for a message."""
        return f"{self.key} ({self.origin})"


def settings(files: Sequence[ConfigFile], launch: Launch) -> list[Setting]:
    """All values that files and command line set; of equal keys the last one counts, and a list replaces a list."""
    found: dict[Path, Setting] = {}

    def put(
        value: Any, path: Path, order: int, origin: Callable[[str], str], text: str | None = None
    ) -> None:
        if str(path[-1]).endswith("+"):
            owner = (*path[:-1], str(path[-1]).removesuffix("+"))
            entries = value if isinstance(value, list) else [value]
            for index, entry in enumerate(entries, start=_length(found, owner)):
                put(_entry(entry), (*owner, index), order, origin)
            return
        if isinstance(value, Mapping) and value:
            if path in NAME_OR_CLASS:  # a name that an earlier one has set
                found.pop(path, None)
            for key, entry in value.items():
                put(entry, (*path, str(key)), order, origin, text)
            return
        if path in NAME_OR_CLASS and isinstance(value, str) and "." in value:
            put({"class_path": value}, path, order, origin, text)
            return
        if _is_of_classes(value, path) or path in NAME_OR_CLASS:
            for old in [old for old in found if old[: len(path)] == path]:
                del found[old]
        for leaf, entry in _leaves(value, path):
            found.pop(leaf, None)  # its turn is that of the last one
            found[leaf] = Setting(leaf, entry, origin(".".join(map(str, leaf))), order, text)

    for order, file in enumerate(files):
        for key, value in file.data.items():
            if key not in LAUNCH_KEYS:
                put(value, (str(key),), order, file.where)
    words = iter(launch.overrides)
    for word in words:
        name, equals, text = word.partition("=")
        if name.startswith("--"):
            text = text if equals else next(words, "")
            path = _written_out(tuple(name.removeprefix("--").split(".")), found, text)
            put(typed_value(text), path, len(files), lambda key: "command line", text)
    return list(found.values())


def _written_out(keys: Path, found: Mapping[Path, Setting], text: str) -> Path:
    """The whole path of an option of the command line, where short forms leave parts of it out."""
    if keys[0] in CHOSEN:
        keys = _of_class(keys[:1], keys[1:], text)
        if keys[:3] == NETWORK:
            return _of_class(NETWORK, keys[3:], text)
        return _of_class(keys[:3], keys[3:], text) if keys[:3] in NAME_OR_CLASS and keys[3:] else keys
    if keys[:2] == ("trainer", "callbacks") and len(keys) > 2:
        n_entries = _length(found, keys[:2])
        rest = keys[2:]
        if n_entries and not str(rest[0]).isdigit():  # an option of the last one
            rest = rest if rest[0] in ("class_path", "init_args") else ("init_args", *rest)
            return (*keys[:2], n_entries - 1, *rest)
    return keys


def _of_class(where: Path, rest: Path, text: str) -> Path:
    """The whole path of a class that is chosen there, or of one of its options."""
    if rest:
        return (
            *where,
            *(() if rest[0] in ("class_path", "init_args", "dict_kwargs") else ("init_args",)),
            *rest,
        )
    is_whole = text.lstrip().startswith(("{", "[")) or text == "null"
    return where if is_whole else (*where, "class_path")


def _length(found: Mapping[Path, Setting], owner: Path) -> int:
    n = len(owner)
    return len(
        {path[n] for path in found if path[:n] == owner and len(path) > n and isinstance(path[n], int)}
    )


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, Mapping) and value:
        for key, entry in value.items():
            yield from _leaves(entry, (*path, str(key)))
    elif _is_of_classes(value, path):
        for index, entry in enumerate(value):
            yield from _leaves(_entry(entry), (*path, index))
    else:
        yield path, value


def _is_of_classes(value: Any, path: Path) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return path[-1] == "callbacks" or any(isinstance(entry, Mapping) for entry in value)


def _entry(entry: Any) -> Any:
    """A class that is named alone, as one with its options."""
    return {"class_path": entry} if isinstance(entry, str) else entry
