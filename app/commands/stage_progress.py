"""How far a measurement of many stages has come."""

import time
from typing import Any

from app.run.terminal import is_live


class StageProgress:
    """A bar on a terminal; a line per stage elsewhere."""

    def __init__(self, total: int):
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = None
        self._began = time.monotonic()
        if is_live():
            self._bar = Progress(
                TextColumn("{task.description:<32}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"),
                TimeRemainingColumn(), transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> "StageProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, what: str, advance: int) -> None:
        """Says what comes next; ``advance`` batches count as done with it."""
        if self._bar is not None:
            self._bar.update(self._task, description=what, advance=advance)
        else:
            print(f"stage    {what} ({time.monotonic() - self._began:.0f} s)", flush=True)

    def tick(self) -> None:
        """One batch is done."""
        self.skip(1)

    def skip(self, n_batches: int) -> None:
        """So many batches are done, or were."""
        if self._bar is not None:
            self._bar.advance(self._task, n_batches)
