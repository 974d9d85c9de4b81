"""A comparison on a terminal, a narrow one, or a pipe."""

import re
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.analysis.comparison import Comparison, Group, Spread, told_apart

TITLES = {
    "val/loss": "val loss",
    "val/bpb": "val bpb",
    "best/val_loss": "best val",
    "best/step": "at step",
    "train/loss": "train loss",
    "tokens_seen": "tokens",
    "speed/seconds": "seconds",
    "tokens_per_second": "tokens/s",
    "parameters": "parameters",
}
COUNTS = frozenset({"best/step", "tokens_seen", "tokens_per_second", "parameters"})
HASH = re.compile("[0-9a-f]{40,64}")  # of a commit or of a content; twelve digits tell them apart
WIDE = 10_000  # a file or a pipe has no edge


def print_comparison(comparison: Comparison, notes: list[str]) -> None:
    """Prints groups, figures, differences and notes; tables that do not fit become lists."""
    console = Console() if sys.stdout.isatty() else Console(width=WIDE, no_color=True)
    groups = comparison.groups
    for group in groups:
        console.print(Text(group.name, style="bold"), soft_wrap=True)
        for run in group.runs:
            seed = "" if run.seed is None else f", seed {run.seed}"
            console.print(
                Text(f"   {run.path}  ({run.state} at step {run.last_step:,}{seed})"), soft_wrap=True
            )
    console.print()
    figures = {group.letter: _figures(group) for group in groups}
    titles = [title for title in TITLES.values() if any(title in found for found in figures.values())]
    if titles:
        rows = [[letter, *(found.get(title, "–") for title in titles)] for letter, found in figures.items()]
        _print_table(console, ["", *titles], rows, right=True)
    if len(groups) > 1:
        told, n_left = told_apart(comparison.differences)
        rows = [[key, *(_cell(value) for value in values)] for key, values in told.items()]
        if rows:
            _print_table(console, ["setting", *(group.letter for group in groups)], rows, right=False)
            if n_left:
                notes = [
                    f"{n_left} settings that only some of these classes have are in compare.json",
                    *notes,
                ]
        else:
            console.print("no setting differs; the groups have come to different steps\n", soft_wrap=True)
    for note in notes:
        console.print(Text(f"note     {note}"), soft_wrap=True)


def _print_table(console: Console, header: list[str], rows: list[list[str]], right: bool) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, title in enumerate(header):
        table.add_column(title, justify="right" if right and i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    needed = console.measure(table, options=console.options.update(width=WIDE)).maximum
    if needed <= console.width:
        console.print(table)
    else:
        for row in rows:
            console.print(Text(row[0], style="bold"), soft_wrap=True)
            for title, cell in zip(header[1:], row[1:], strict=True):
                console.print(Text(f"   {title}  {cell}"), soft_wrap=True)
    console.print()


def _figures(group: Group) -> dict[str, str]:
    return {TITLES[key]: _number(key, spread) for key, spread in group.figures().items()}


def _number(key: str, spread: Spread) -> str:
    if key == "speed/seconds":
        text, sd = f"{spread.mean:,.1f}", f"{spread.sd:,.1f}"
    elif key in COUNTS:
        text, sd = f"{spread.mean:,.0f}", f"{spread.sd:,.0f}"
    else:
        text, sd = f"{spread.mean:.4f}", f"{spread.sd:.4f}"
    return f"{text} ± {sd}" if spread.n > 1 and spread.sd > 0 else text


def _cell(value: Any) -> str:
    text = "–" if value is None else str(value)
    if HASH.fullmatch(text):
        return text[:12]
    return text if len(text) <= 48 else text[:23] + "…" + text[-24:]
