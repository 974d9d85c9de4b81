"""Runs the jobs of a study side by side, each a process of ``app fit``.

Nothing is remembered here: how far a study is stands in the folders of its runs. So a runner may be killed at any
moment, with its runs or without them; the next one goes on. A run that somebody else is at, such as one that has
outlived its runner, is waited for.
"""

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from app.study.jobs import Job, Standing
from app.study.starting import Fresh, Process, Starter

POLL_SECONDS = 0.2


class Display(Protocol):
    """What shows how far a study is."""

    def changed(self, jobs: Sequence[Job], standings: dict[str, Standing]) -> None:
        """Called when a run has begun or ended, and every second in between."""
        ...


@dataclass
class Engine:
    """Runs jobs.

    Args:
        n_slots: how many at a time.
        devices: numbers of the GPUs that the slots take in turn; none where there are none.
        display: shows how far it is.
        starter: starts the processes.
    """

    n_slots: int
    devices: Sequence[str]
    display: Display
    starter: Starter = field(default_factory=Fresh)
    _running: dict[int, tuple[Job, Process]] = field(default_factory=dict)

    def run(self, jobs: Sequence[Job], shown: Sequence[Job] | None = None) -> dict[str, Standing]:
        """Runs what is not finished; a run that fails stops no other.

        Args:
            jobs: to run, in order.
            shown: all jobs of the study, for the display.

        Returns:
            By name, how each stands at the end.

        Raises:
            StorageError: the study's folder cannot be written; what runs is told to save and leave.
        """
        everything = list(shown or jobs)
        standings = {job.name: job.standing() for job in everything}
        queue = [job for job in jobs if standings[job.name].state != "finished"]
        try:
            shown_at = 0.0
            while queue or self._running:
                ended = self._collect(queue, standings)
                begun = self._fill(queue, standings)
                if ended or begun or time.monotonic() - shown_at > 1:
                    for job, _ in self._running.values():
                        standings[job.name] = Standing("running", job.progress()[0])
                    self.display.changed(everything, standings)
                    shown_at = time.monotonic()
                time.sleep(POLL_SECONDS)
        finally:
            self._leave()
        self.display.changed(everything, standings)
        return standings

    def _fill(self, queue: list[Job], standings: dict[str, Standing]) -> bool:
        """Starts what there is room for; whether anything was started."""
        begun = False
        for slot in range(self.n_slots):
            if slot in self._running:
                continue
            job = next((job for job in queue if not _is_elsewhere(job, standings)), None)
            if job is None:
                break
            queue.remove(job)
            if standings[job.name].state == "finished":  # somebody else has done it
                begun = True
                continue
            self._running[slot] = (job, self._start(job, slot))
            begun = True
        return begun

    def _start(self, job: Job, slot: int) -> Process:
        job.note()
        return self.starter.start(job, self.devices[slot % len(self.devices)] if self.devices else None)

    def _collect(self, queue: list[Job], standings: dict[str, Standing]) -> bool:
        """Takes note of what has ended; whether anything has."""
        codes = {slot: process.poll() for slot, (_, process) in self._running.items()}
        ended = {slot: code for slot, code in codes.items() if code is not None}
        for slot, code in ended.items():
            job, _ = self._running.pop(slot)
            standings[job.name] = _after(job, code)
            if standings[job.name].state == "running":  # another process was there first
                queue.append(job)
        return bool(ended)

    def _leave(self) -> None:
        """Tells what still runs to save and leave, and waits for it."""
        for _, process in self._running.values():
            process.send_signal(signal.SIGTERM)
        for _, process in self._running.values():
            process.wait()
        self._running.clear()


def _is_elsewhere(job: Job, standings: dict[str, Standing]) -> bool:
    """Whether another process is at this run now; its standing is brought up to date."""
    standings[job.name] = job.standing()
    return standings[job.name].state == "running"


def _after(job: Job, code: int) -> Standing:
    """How a run stands whose process has ended."""
    found = job.standing()
    if found.state == "running" or (code == 0 and found.state == "finished"):
        return found
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM) or code < 0:
        reason = "was stopped" if code > 0 else f"was killed by {signal.Signals(-code).name}"
        return Standing("stopped", found.step, code, found.reason or reason)
    # A launch that was refused leaves no word in the run; its log has it.
    reason = found.reason if found.state == "failed" else ""
    return Standing("failed", found.step, code, reason or job.last_words() or f"ended with code {code}")


def visible_devices(environment: dict[str, str], list_devices: Callable[[], int]) -> list[str]:
    """Numbers of the GPUs that runs may use.

    Args:
        environment: whose ``CUDA_VISIBLE_DEVICES`` counts where it is set.
        list_devices: how many the machine has.
    """
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    return [str(number) for number in range(list_devices())]
