"""``app configs``: the shipped configurations, each with what it shows and what it costs."""

import argparse
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from app.commands.parsing import CommandParser
from app.run.configuration import find_config, read_config, shipped_directory, shipped_names
from app.run.errors import ExitCode

WIDTH = 80
COST = "Cost: "
OVERLAYS = "overlays: app fit NAME --config OVERLAY"
#: the options of a data set that say which text it is
OF_TEXT = ("source", "name", "path")
#: what a configuration whose text is downloaded needs where there is no network, by the words of its title
OFFLINE = {
    "tinyshakespeare": "--data.source stdlib",
    "WikiTextDataModule": "--data CharDataModule --data.source stdlib",
}


class Heading(NamedTuple):
    """The comment that opens a configuration.

    Attributes:
        headline: its first line: what the configuration shows.
        cost: what its line ``Cost: …`` says; empty without one.
    """

    headline: str
    cost: str


def run(name: str, words: list[str]) -> int:
    """Lists the configurations, or prints one.

    Args:
        name: ``configs``.
        words: the rest of the command line.
    """
    named = command_parser().parse_args(words).name
    print("\n".join(_lines()) if named is None else find_config(named).read_text(encoding="utf-8").rstrip())
    return int(ExitCode.DONE)


def heading(path: Path) -> Heading:
    """What a configuration says of itself."""
    comment: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    cost = next((line.removeprefix(COST) for line in comment if line.startswith(COST)), "")
    return Heading(comment[0] if comment else "", cost)


def _lines() -> Iterator[str]:
    root = shipped_directory()
    names = shipped_names(root)
    column = 4 + max(map(len, names))
    groups: dict[str, list[str]] = {}
    for name in names:
        path = root / f"{name}.yaml"
        data, about = read_config(path).data, heading(path)
        cost = ", ".join(part for part in (_steps(data), about.cost) if part)
        texts = [line for part in (about.headline, cost) for line in textwrap.wrap(part, WIDTH - column)]
        rows = [f"{'' if number else f'  {name}':<{column}}{text}" for number, text in enumerate(texts)]
        groups.setdefault(_text(data), []).extend(rows)
    for title in sorted(groups, key=lambda title: title == OVERLAYS):  # they come last
        yield title
        instead = next((options for word, options in OFFLINE.items() if word in title.split()), "")
        if instead:
            yield "  downloads its text once; without a network add"
            yield f"    {instead}"
        yield from (*groups[title], "")
    yield "app fit NAME trains one, app configs NAME prints it."


def _text(data: dict[str, Any]) -> str:
    """The data set of a configuration, as a title."""
    section = data.get("data")
    if section is None:
        return OVERLAYS
    given = section.get("init_args", {})
    return " ".join(
        [section["class_path"].rpartition(".")[2], *(given[key] for key in OF_TEXT if key in given)]
    )


def _steps(data: dict[str, Any]) -> str:
    """The length of a run and the size of its steps; empty where a configuration does not say all of it."""
    given = data.get("data", {}).get("init_args", {}) | data["trainer"]
    if not {"max_steps", "batch_size", "block_size"} <= given.keys():
        return ""
    return f"{given['max_steps']:,} steps of {given['batch_size']} x {given['block_size']}"


def command_parser() -> argparse.ArgumentParser:
    parser = CommandParser("configs", description="Lists the shipped configurations, or prints one of them.")
    parser.add_argument("name", metavar="NAME_OR_FILE", nargs="?", help="the configuration to print")
    return parser
