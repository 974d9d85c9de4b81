"""The table of a study while it runs: rows, seeds done, what runs and how long it still takes, what failed and why."""

import sys
import time
from collections.abc import Sequence
from typing import TextIO

from app.study.jobs import Job, Standing

#: least seconds between two tables where they do not replace one another
PATIENCE_SECONDS = 30.0


class LiveTable:
    """A table that replaces itself on a terminal; elsewhere a line for each run that ends, and the table now and then.

    Args:
        max_steps: steps of each job by name, where they are known.
        stream: standard output by default.
    """

    def __init__(self, max_steps: dict[str, int], stream: TextIO | None = None):
        self.max_steps = max_steps
        self.stream = stream or sys.stdout
        self._live = self.stream.isatty()
        self._n_lines = 0
        self._before: dict[str, Standing] = {}

    def changed(self, jobs: Sequence[Job], standings: dict[str, Standing]) -> None:
        """Shows how far the study is."""
        if self._live:
            lines = [line[: self._width()] for line in table(jobs, standings, self.max_steps)]
            up = f"\x1b[{self._n_lines}F\x1b[J" if self._n_lines else ""
            self.stream.write(up + "".join(f"{line}\n" for line in lines))
            self._n_lines = len(lines)
        else:
            for job in jobs:
                standing, before = standings[job.name], self._before.get(job.name)
                if before is not None and before.state != standing.state:
                    self.stream.write(f"{time.strftime('%H:%M:%S')} {job.name}: {said(standing)}\n")
        self.stream.flush()
        self._before = dict(standings)

    @staticmethod
    def _width() -> int:
        import shutil

        return shutil.get_terminal_size().columns


def table(jobs: Sequence[Job], standings: dict[str, Standing], max_steps: dict[str, int]) -> list[str]:
    """A line for each row.

    Args:
        jobs: in order.
        standings: by name.
        max_steps: by name, where they are known.
    """
    rows: dict[str, list[Job]] = {}
    for job in jobs:
        rows.setdefault(job.row.name, []).append(job)
    width = max(len("row"), *map(len, rows))
    lines = [f"{'row':<{width}}  done  now"]
    for name, of_row in rows.items():
        found = [standings[job.name] for job in of_row]
        done = sum(standing.state == "finished" for standing in found)
        now = [
            f"{job.kind} {job.seed} {_doing(job, standing, max_steps.get(job.name))}"
            for job, standing in zip(of_row, found, strict=True)
            if standing.state not in ("finished", "waiting")
        ]
        lines.append(f"{name:<{width}}  {f'{done}/{len(of_row)}':<4}  {'; '.join(now)}".rstrip())
    n_done = sum(standing.state == "finished" for standing in standings.values())
    lines.append(f"{n_done} of {len(jobs)} runs finished")
    return lines


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
    left = seconds / step * max(0, max_steps - step)
    return f"at {step:,}/{max_steps:,}, left {int(left // 60)}:{int(left % 60):02d}"
