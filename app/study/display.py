"""The table of a study while it runs: rows, seeds done, what runs and how long it still takes, what failed and why."""

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from app.run.terminal import clock, is_live
from app.study.jobs import Job, Standing

#: how what is wrong, done and under way looks where there are colours
LOOK = {"failed": "red", "stopped": "yellow"}


class LiveTable:
    """A table that replaces itself on a terminal, within a ``with`` block; elsewhere a line for each run that ends.

    Args:
        max_steps: steps of each job by name, where they are known.
        stream: where lines go; None for standard output, and for the table if that can be drawn on.
    """

    def __init__(self, max_steps: dict[str, int], stream: TextIO | None = None):
        self.max_steps = max_steps
        self.stream = stream or sys.stdout
        self._live = None
        if stream is None and is_live():
            self._live = Live(console=Console(file=sys.stdout), auto_refresh=False)
        self._before: dict[str, Standing] = {}

    def __enter__(self) -> "LiveTable":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def changed(self, jobs: Sequence[Job], standings: dict[str, Standing]) -> None:
        """Shows how far the study is."""
        if self._live is not None:
            self._live.update(table(jobs, standings, self.max_steps), refresh=True)
            return
        for job in jobs:
            standing, before = standings[job.name], self._before.get(job.name)
            if before is not None and before.state != standing.state:
                self.stream.write(f"{time.strftime('%H:%M:%S')} {job.name}: {said(standing)}\n")
        self.stream.flush()
        self._before = dict(standings)


def table(jobs: Sequence[Job], standings: dict[str, Standing], max_steps: dict[str, int]) -> Table:
    """A line for each row and each of its runs that is neither finished nor waiting.

    Args:
        jobs: in order.
        standings: by name.
        max_steps: by name, where they are known.
    """
    rows: dict[str, list[Job]] = {}
    for job in jobs:
        rows.setdefault(job.row.name, []).append(job)
    n_done = sum(standing.state == "finished" for standing in standings.values())
    drawn = Table(
        box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold",
        caption=Text(f"{n_done} of {len(jobs)} runs finished"), caption_justify="left", caption_style="",
    )  # fmt: skip
    drawn.add_column("row", overflow="fold")
    drawn.add_column("done", no_wrap=True)
    drawn.add_column("now", overflow="fold")
    for name, of_row in rows.items():
        found = [standings[job.name] for job in of_row]
        done = sum(standing.state == "finished" for standing in found)
        now = [
            Text(
                f"{job.kind} {job.seed} {_doing(job, standing, max_steps.get(job.name))}",
                style=LOOK.get(standing.state, ""),
            )
            for job, standing in zip(of_row, found, strict=True)
            if standing.state not in ("finished", "waiting")
        ]
        count = Text(f"{done}/{len(of_row)}", style="green" if done == len(of_row) else "")
        drawn.add_row(Text(name), count, Text("\n").join(now))
    return drawn


def said(standing: Standing) -> str:
    """How a run stands, in words."""
    if standing.state == "failed":
        code = "" if standing.exit_code is None else f" with exit code {standing.exit_code}"
        return f"failed{code}: {standing.reason}"
    if standing.state == "stopped":
        return f"stopped at step {standing.step:,}: {standing.reason}"
    return f"{standing.state} at step {standing.step:,}" if standing.step else standing.state


def _doing(job: Job, standing: Standing, max_steps: int | None) -> str:
    if standing.state != "running":
        return said(standing)
    step, seconds = job.progress()
    if not step or max_steps is None:
        return "starts"
    return f"at {step:,}/{max_steps:,}, {clock(seconds / step * max(0, max_steps - step))} left"
