"""How far a preparation is: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from app.run import ranks

LINE_SECONDS = 5.0


class Progress:
    """Shows the stages of a preparation on standard error; only the first rank speaks.

    Args:
        label: what is prepared.
        plain: lines instead of a bar; by default whether standard error is no terminal.
    """

    def __init__(self, label: str, plain: bool | None = None):
        self.label = label
        self.plain = not sys.stderr.isatty() if plain is None else plain
        self.is_quiet = ranks.number() > 0

    def note(self, text: str) -> None:
        """One line of its own."""
        if not self.is_quiet:
            print(f"{self.label}: {text}", file=sys.stderr, flush=True)

    def stage(self, name: str, pieces: Iterable[str], n_bytes: int) -> Iterator[str]:
        """Passes pieces of text on and shows how many there have been.

        Args:
            name: of the stage, such as ``tokens``.
            pieces: of the text.
            n_bytes: about how long the whole text is.
        """
        if self.is_quiet:
            yield from pieces
            return
        done, began = 0, time.monotonic()
        shown = began
        bar, task = (None, None) if self.plain else _bar(f"{self.label}: {name}", n_bytes)
        try:
            for piece in pieces:
                yield piece
                done += len(piece) if piece.isascii() else len(piece.encode())
                now = time.monotonic()
                if bar is not None:
                    bar.update(task, completed=done)
                elif now - shown >= LINE_SECONDS:
                    shown = now
                    self.note(
                        f"{name} {done / 1e6:,.0f} of about {max(n_bytes, done) / 1e6:,.0f} MB, "
                        f"{done / 1e6 / (now - began):.1f} MB/s"
                    )
        finally:
            if bar is not None:
                bar.stop()


def _bar(name: str, n_bytes: int) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    bar = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    bar.start()
    return bar, bar.add_task(name, total=max(n_bytes, 1))
