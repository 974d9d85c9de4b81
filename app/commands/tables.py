"""Tables that fit the terminal they are printed on; a file or a pipe gets those of 80 columns, or of $COLUMNS."""

import os
from collections.abc import Collection, Sequence
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.run import terminal

TEXT_WIDTH = 80
WIDE = 10_000
GAP = 2  # columns between two cells


def console(width: int | None = None) -> Console:
    """Standard output, for words that are shown as they are.

    Args:
        width: columns where it is no terminal; by default $COLUMNS, or 80.
    """
    columns = terminal.columns()
    if columns is None:
        named = os.environ.get("COLUMNS", "")
        columns = width or (max(int(named), terminal.NARROWEST) if named.isdecimal() else TEXT_WIDTH)
    return Console(width=columns, highlight=False, markup=False, emoji=False)


def print_table(
    output: Console, header: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = (0,)
) -> None:
    """Prints a table and an empty line.

    One that is too wide lies on its side, each row a column, and where that is too wide too, some rows at a time.
    A cell that is wider than all of the room is broken.

    Args:
        output: of :func:`console`.
        header: titles.
        rows: as many cells each; the first one names its row.
        left: columns that are set to the left.
    """
    if needed([header, *rows]) <= output.width:
        _print(output, header, rows, left)
        return
    columns = list(zip(*rows, strict=True))
    titles = max(map(len, header))
    lying: list[int] = []
    for number in range(len(rows) + 1):
        is_over = number == len(rows)
        wanted = [] if is_over else [*lying, number]
        room = titles + sum(GAP + max(len(cell) for cell in rows[row]) for row in wanted)
        if lying and (is_over or room > output.width):
            chosen = [[columns[0][row] for row in lying], *([c[row] for row in lying] for c in columns[1:])]
            body = [[title, *cells] for title, cells in zip(header[1:], chosen[1:], strict=True)]
            _print(output, [header[0], *chosen[0]], body, (0,) if len(lying) > 1 else (0, 1))
            lying = []
        if not is_over:
            lying.append(number)


def _print(
    output: Console, header: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int]
) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, GAP, 0, 0))
    fits = needed([header, *rows]) <= output.width
    for number, title in enumerate(header):
        justify: Literal["left", "right"] = "left" if number in left else "right"
        table.add_column(Text(title), justify=justify, no_wrap=fits or number == 0, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    output.print(table)
    output.print()


def needed(rows: Sequence[Sequence[str]]) -> int:
    """Columns of a table of these rows, the header among them, that breaks no cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return sum(widths) + GAP * (len(widths) - 1)
