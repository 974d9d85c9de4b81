"""Ends a run whose ranks wait for each other for ever, and names the rank that they wait for.

A rank that is stopped, loops, or has lost its network leaves the others in a collective: in C++ or on the GPU, where
nothing of Python runs. So a thread of each rank notes about once a second where that rank stands, in the store through
which the ranks have met, and looks at what the others have noted. None of it is a collective, and none of it waits for
a device.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.distributed import TCPStore

from app.run.errors import AppError, ExitCode
from app.run.rank_processes import OTHERS, rank_zero
from app.run.ranks import LAUNCHER, is_torchrun
from app.run.signals import requested
from app.run.watch import end_descendants

#: between two notes of a rank
NOTE_SECONDS = 1.0
#: for an answer of the store, which ends with the process that keeps it
ANSWER_SECONDS = 10.0
#: a machine that was suspended, or processes that were all stopped, have waited no longer than this
LONGEST_LOOK = 5.0
#: the phase of a rank that has not noted anything
STARTING = "starting"
#: stands for a rank of which nothing was ever heard
NEVER: dict[str, Any] = {"host": "?", "pid": "?", "phase": STARTING, "step": 0, "collectives": 0, "at": "?"}
#: ranks that a message lists
MOST_LISTED = 16


class Notes(Protocol):
    """What the ranks note their progress in."""

    def write(self, rank: int, values: Mapping[str, Any]) -> None:
        """Replaces what a rank has noted."""

    def read(self, rank: int) -> dict[str, Any] | None:
        """What a rank has noted last; None for nothing."""


class StoreNotes:
    """Notes in the store through which ranks of several machines have met."""

    def __init__(self, store: TCPStore):
        self._store = store

    @classmethod
    def connected(cls, place: tuple[str, int]) -> "StoreNotes | None":
        """A connection of our own: the process group's is held while it waits for others."""
        timeout = timedelta(seconds=ANSWER_SECONDS)
        try:
            # PyTorch would complain on the screen where rank zero has not opened it yet.
            socket.create_connection(place, ANSWER_SECONDS).close()
            return cls(TCPStore(*place, is_master=False, wait_for_workers=False, timeout=timeout))
        except (OSError, RuntimeError):
            return None

    def write(self, rank: int, values: Mapping[str, Any]) -> None:
        self._store.set(self._key(rank), json.dumps(values, allow_nan=False))

    def read(self, rank: int) -> dict[str, Any] | None:
        if not self._store.check([self._key(rank)]):
            return None
        found: dict[str, Any] = json.loads(self._store.get(self._key(rank)))
        return found

    def _key(self, rank: int) -> str:
        return f"archlab/progress/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{rank}"


class HangWatch(threading.Thread):
    """Notes this rank's progress, and ends the run when no rank makes any.

    Time counts from the first note of any rank on, to the last one of any: what comes before, the limit of the process
    group bounds, and what follows rank zero does alone.

    Args:
        connect: opens what the ranks note in; None where it is not there yet.
        rank: this one's, of all.
        world_size: how many there are.
        timeout_seconds: without progress of any rank, after which the run is ended.

    Attributes:
        on_hang: told why, before this process ends.
    """

    on_hang: Callable[[str], object] = staticmethod(lambda reason: OTHERS.on_lost(reason))

    def __init__(
        self, connect: Callable[[], "Notes | None"], rank: int, world_size: int, timeout_seconds: float
    ):
        super().__init__(daemon=True, name="hang-watch")
        self.connect = connect
        self.rank = rank
        self.world_size = world_size
        self.timeout_seconds = timeout_seconds
        self._main = threading.main_thread().ident
        self._n_notes = 0
        self._step = 0
        self._phase = STARTING
        self._closed = threading.Event()

    def note(self, step: int, phase: str) -> None:
        """This rank has come on: to a step, or to another batch of a validation. Costs less than a microsecond.

        Args:
            step: completed optimizer steps.
            phase: what it does now; empty where the ranks' common work is done.
        """
        self._step, self._phase = step, phase
        self._n_notes += 1

    def close(self) -> None:
        """The ranks need not meet again."""
        self._closed.set()

    def run(self) -> None:
        """Notes and looks until it is closed."""
        notes: Notes | None = None
        found: dict[int, dict[str, Any]] = {}
        beats: dict[int, tuple[int, float]] = {}
        silent, looked = 0.0, time.monotonic()
        for beat in range(1 << 62):
            if self._closed.wait(NOTE_SECONDS if beat else 0.0):
                return
            notes = notes or self.connect()
            was = self._progress(found)
            if notes is not None:
                with contextlib.suppress(RuntimeError):  # nobody answers: nobody is heard of
                    notes.write(self.rank, self._own(beat))
                    for rank in range(self.world_size):
                        if (noted := notes.read(rank)) is not None:
                            found[rank] = noted
            now = time.monotonic()
            passed, looked = min(now - looked, LONGEST_LOOK + ANSWER_SECONDS), now
            # Of the ranks that act the first one comes first: it tells, and ends the others.
            limit = self.timeout_seconds + 3 * NOTE_SECONDS * self.rank
            for rank, noted in found.items():
                last, silence = beats.get(rank, (0, 0.0))
                beats[rank] = (noted["beat"], 0.0 if noted["beat"] != last else silence + passed)
            phases = {noted["phase"] for noted in found.values()}
            is_at_work = "" not in phases and phases - {STARTING}
            has_moved = self._progress(found) != was or not is_at_work
            silent = 0.0 if has_moved else silent + passed
            if silent > limit and requested() is None and not self._closed.is_set():
                never = {rank: NEVER for rank in range(self.world_size) if rank not in found}
                silences = {rank: silence for rank, (_, silence) in beats.items()}
                self._end(told(found | never, dict.fromkeys(never, silent) | silences, silent))

    def _progress(self, found: Mapping[int, Mapping[str, Any]]) -> dict[int, tuple[int, str]]:
        return {rank: (noted["notes"], noted["phase"]) for rank, noted in found.items()}

    def _own(self, beat: int) -> dict[str, Any]:
        return {
            "beat": beat,
            "notes": self._n_notes,
            "step": self._step,
            "phase": self._phase,
            "collectives": n_collectives(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "at": self._at(),
        }

    def _at(self) -> str:
        """Where the main thread is."""
        frame = sys._current_frames().get(self._main or 0)
        if frame is None:
            return "?"
        file = "/".join(Path(frame.f_code.co_filename).parts[-2:])
        return f"{frame.f_code.co_qualname} ({file}:{frame.f_lineno})"

    def _end(self, reason: str) -> None:
        try:
            said = threading.Thread(target=self._say, args=(reason,), daemon=True)
            said.start()
            said.join(ANSWER_SECONDS)
            end_descendants()
            # The launcher is the rank that hangs, or it would have ended this one.
            if rank_zero() is not None and not is_torchrun():
                os.kill(int(os.environ[LAUNCHER]), signal.SIGKILL)
        finally:
            os._exit(ExitCode.RANK_LOST)

    def _say(self, reason: str) -> None:
        with contextlib.suppress(OSError):
            # The descriptor and not the stream, whose lock the main thread may hold.
            os.write(2, f"error: {reason}\n".encode())
        with contextlib.suppress(OSError, AppError):
            self.on_hang(reason.splitlines()[0])


def n_collectives() -> int:
    """Collectives that this rank has begun, over all groups; 0 where PyTorch does not say."""
    try:
        groups: list[Any] = list(torch.distributed.distributed_c10d._world.pg_map)
        return sum(group._get_sequence_number_for_group() for group in groups)
    except (RuntimeError, AttributeError):
        return 0


def behind(
    found: Mapping[int, Mapping[str, Any]], silences: Mapping[int, float], seconds: float
) -> list[int]:
    """The ranks that the others wait for: without a sign of life, at the lowest step, or before the last collective.

    Args:
        found: what each rank has noted.
        silences: seconds since its last sign of life.
        seconds: since the last progress of any.
    """
    dead = [rank for rank, silence in silences.items() if is_dead(silence, seconds)]
    if dead and len(dead) < len(found):
        return dead
    for name in ("step", "collectives"):
        least = min(noted[name] for noted in found.values())
        last = [rank for rank, noted in found.items() if noted[name] == least]
        if len(last) < len(found):
            return last
    return []


def is_dead(silence: float, seconds: float) -> bool:
    """Whether a rank without a sign of life for so long is more than late: one comes about every second."""
    return silence > min(ANSWER_SECONDS, seconds / 2)


def told(found: Mapping[int, Mapping[str, Any]], silences: Mapping[int, float], seconds: float) -> str:
    """What a person is told of ranks that wait for each other; see :func:`behind`."""
    ranks = behind(found, silences, seconds)
    named = " and ".join(f"rank {rank}" for rank in ranks[:MOST_LISTED])
    verb = "is" if len(ranks) == 1 else "are"
    first = f"no rank has made progress for {seconds:.0f} s; " + (
        f"{named} {verb} behind" if ranks else "none is behind the others"
    )
    lines = []
    for rank in [*ranks, *(rank for rank in sorted(found) if rank not in ranks)][:MOST_LISTED]:
        noted, silence = found[rank], silences.get(rank, 0.0)
        life = f", no sign of life for {silence:.0f} s" if is_dead(silence, seconds) else ""
        lines.append(
            f"rank {rank} (host {noted['host']}, process {noted['pid']}): {noted['phase']} after step {noted['step']}, "
            f"{noted['collectives']} collectives begun, in {noted['at']}{life}"
        )
    if ranks:
        first += " (" + lines[0].partition(" (")[2]
        lines = lines[1:]
    remedy = (
        "Remedy: start the same command again with --resume auto. Where it comes back, set NCCL_DEBUG=INFO to see what "
        "NCCL waits for, NCCL_SOCKET_IFNAME (GLOO_SOCKET_IFNAME) where hosts have several networks, and "
        "trainer.strategy.init_args.timeout_seconds where a rank needs longer."
    )
    return "\n".join([first, *(f"  {line}" for line in lines), remedy])
