"""A comparison on a terminal, a narrow one, or a pipe."""

from typing import Any

from rich.console import Console
from rich.text import Text

from app.analysis.comparison import HASH, Comparison, Group, Spread, told_apart
from app.commands.tables import WIDE, console, needed, print_table
from app.run.terminal import say, wrapped

TITLES = {
    "val/loss": "val loss",
    "val/bpb": "val bpb",
    "val/unknown_share": "unknown words",
    "best/val_loss": "best val",
    "best/step": "at step",
    "train/loss": "train loss",
    "tokens_seen": "tokens",
    "speed/seconds": "seconds",
    "tokens_per_second": "tokens/s",
    "parameters": "parameters",
    "baseline/count_loss": "counts",
    "baseline/count_bpb": "counts bpb",
}
COUNTS = frozenset({"best/step", "tokens_seen", "tokens_per_second", "parameters"})


def print_comparison(comparison: Comparison, notes: list[str]) -> None:
    """Prints groups, figures, differences and notes; on a terminal as wide as it is."""
    output = console(WIDE)
    groups = comparison.groups
    for group in groups:
        output.print(Text(wrapped(group.name, 3), style="bold"), soft_wrap=True)
        for run in [*group.runs, *group.repeats]:
            seed = "" if run.seed is None else f", seed {run.seed}"
            output.print(f"   {run.path}  ({run.state} at step {run.last_step:,}{seed})", soft_wrap=True)
    output.print()
    figures = {group.letter: _figures(group) for group in groups}
    titles = [title for title in TITLES.values() if any(title in found for found in figures.values())]
    if titles:
        rows = [[letter, *(found.get(title, "–") for title in titles)] for letter, found in figures.items()]
        print_table(output, ["", *titles], rows)
    if len(groups) > 1:
        told, n_left = told_apart(comparison.differences)
        rows = [[key, *(_cell(value) for value in values)] for key, values in told.items()]
        if rows:
            _print_settings(output, ["setting", *(group.letter for group in groups)], rows)
            if n_left:
                notes = [
                    f"{n_left} settings that only some of these classes have are in compare.json",
                    *notes,
                ]
        else:
            output.print("no setting differs; the groups have come to different steps\n", soft_wrap=True)
    for note in notes:
        say("note", note)


def _print_settings(output: Console, header: list[str], rows: list[list[str]]) -> None:
    """A table; where that is too wide, of each setting the values and the groups that have them."""
    if needed([header, *rows]) <= output.width:
        print_table(output, header, rows, left=range(len(header)))
        return
    for name, *values in rows:
        output.print(Text(name, style="bold"), soft_wrap=True)
        owners: dict[str, list[str]] = {}
        for letter, value in zip(header[1:], values, strict=True):
            owners.setdefault(value, []).append(letter)
        said = ";  ".join(f"{', '.join(letters)}: {value}" for value, letters in owners.items())
        output.print(wrapped(f"   {said}", 3), soft_wrap=True)
    output.print()


def _figures(group: Group) -> dict[str, str]:
    return {TITLES[key]: _number(key, spread) for key, spread in group.figures().items()}


def _number(key: str, spread: Spread) -> str:
    if key == "speed/seconds":
        text, sd = f"{spread.mean:,.1f}", f"{spread.sd:,.1f}"
    elif key in COUNTS:
        text, sd = f"{spread.mean:,.0f}", f"{spread.sd:,.0f}"
    elif key == "val/unknown_share":
        text, sd = f"{spread.mean:.2%}", f"{spread.sd:.2%}"
    else:
        text, sd = f"{spread.mean:.4f}", f"{spread.sd:.4f}"
    return f"{text} ± {sd}" if spread.n > 1 and spread.sd > 0 else text


def _cell(value: Any) -> str:
    text = "–" if value is None else str(value)
    if HASH.fullmatch(text):
        return text[:12]  # they tell them apart
    return text if len(text) <= 48 else text[:23] + "…" + text[-24:]
