"""The display of a run on a terminal: a bar, the figures of now, and what is wrong."""

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.progress_bar import ProgressBar as Bar
from rich.table import Table
from rich.text import Text

from app.run.terminal import clock

#: columns of a terminal beyond which the bar grows no longer
WIDEST = 110


class Display:
    """Draws itself anew from what stands in it, at any width; what has no room goes into another line.

    Args:
        step: completed optimizer steps.
        max_steps: of the run.

    Attributes:
        figures: of now, each with its name.
        seconds_left: until the last step; None before the first one.
        health: open findings in words, empty where all is well; None where nobody looks.
        doing: what takes the time of training at the moment; empty for training itself.
    """

    def __init__(self, step: int = 0, max_steps: int = 0):
        self.step, self.max_steps = step, max_steps
        self.figures: Sequence[str] = ()
        self.seconds_left: float | None = None
        self.health: str | None = None
        self.doing = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | Text]:
        width = min(options.max_width, WIDEST)
        counted = f"step {self.step:,}/{self.max_steps:,}"
        left = "" if self.seconds_left is None else f"{clock(self.seconds_left)} left"
        share = f"{self.step / max(self.max_steps, 1):4.0%}"
        room = width - sum(cell_len(text) for text in (counted, share, left)) - 6
        row: list[Text | Bar] = [Text(counted, style="bold"), Text(share), Text(left)]
        if room >= 8:
            row.insert(1, Bar(total=max(self.max_steps, 1), completed=self.step, width=room))
        bar = Table.grid(padding=(0, 2, 0, 0))
        bar.add_row(*row)
        yield bar
        for line in _lines([*self.figures, *([self.doing] if self.doing else [])], options.max_width):
            yield Text(line, overflow="ellipsis", no_wrap=True)
        if self.health is not None:
            said = f"health: {self.health or 'nothing found'}"
            yield Text(said, style="yellow" if self.health else "green", overflow="ellipsis", no_wrap=True)


def _lines(parts: Sequence[str], width: int) -> list[str]:
    """Parts beside each other, as many to a line as have room."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 2 + len(part) <= width:
            lines[-1] += f"  {part}"
        else:
            lines.append(part)
    return lines
