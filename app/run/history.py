"""Which launch of a run made which of its steps, and where each step can be begun from."""

import csv
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from app.run.checkpoint import list_checkpoints, verify
from app.run.configuration import read_config
from app.run.directory import RunDirectory
from app.run.errors import ConfigurationError, IntegrityError
from app.run.manifest import launches_of

#: figures of a step that depend on nothing but the run, in the order in which they are shown
FIGURES = ("train/loss", "train/aux_loss", "train/grad_norm")


class Launched(NamedTuple):
    """A launch whose steps are a part of the run as it now is.

    Attributes:
        first: completed steps when it began.
        configuration: that it resolved; None of a launch by an earlier version, which recorded none.
        place: device, version of PyTorch and number of processes.
        n_threads: of its operations on the CPU; 0 where it says none.
        data: fingerprint of its text.
        path: by which forms and compilation it computed; empty of an earlier version.
    """

    first: int
    configuration: Mapping[str, Any] | None
    place: Mapping[str, Any]
    n_threads: int = 0
    data: Mapping[str, Any] | None = None
    path: Mapping[str, Any] = MappingProxyType({})


class Piece(NamedTuple):
    """Steps of one launch in a row, all to be made with its configuration.

    Attributes:
        first: completed steps before the first one.
        last: number of the last one.
        launch: that made them.
    """

    first: int
    last: int
    launch: Launched


def launches(run: RunDirectory) -> list[Launched]:
    """Those whose steps still count, first to last: what was made behind a step that was gone back to is given up."""
    found: list[Launched] = []
    for launch in launches_of(run):
        first = launch.get("first_step")
        if not isinstance(first, int):
            first = _step_in(launch.get("resumed_from"))
        place, threads, data = launch.get("place"), launch.get("threads"), launch.get("data")
        made = Launched(
            first,
            launch.get("configuration"),
            place if isinstance(place, dict) else {},
            threads if type(threads) is int else 0,
            data if isinstance(data, dict) else None,
            path if isinstance(path := launch.get("path"), dict) else {},
        )
        found = [earlier for earlier in found if earlier.first < first] + [made]
    if not found:
        raise ConfigurationError(
            f"{run}: says nothing of how it was launched (run.json); name a run of app fit"
        )
    return found


def pieces(run: RunDirectory, first: int, last: int) -> list[Piece]:
    """The steps ``first + 1`` to ``last``, cut where another launch with another configuration made them."""
    found: list[Piece] = []
    made = launches(run)
    ends = [later.first for later in made[1:]] + [last]
    for launch, end in zip(made, ends, strict=True):
        begin, end = max(first, launch.first), min(last, end)
        if begin >= end:
            continue
        last_launch = found[-1].launch if found else None
        if last_launch and (last_launch.configuration, last_launch.path) == (
            launch.configuration,
            launch.path,
        ):
            found[-1] = found[-1]._replace(last=end)
        else:
            found.append(Piece(begin, end, launch))
    return found


def configuration_of(run: RunDirectory, launch: Launched) -> dict[str, Any]:
    """What a launch was configured with; of one that recorded nothing, what the run's file says now."""
    if launch.configuration is not None:
        return dict(launch.configuration)
    return dict(read_config(run.config).data)


def begin_of(run: RunDirectory, step: int) -> tuple[int, Path | None]:
    """Where to begin in order to make a step again: the newest whole checkpoint before it, with its step.

    Args:
        run: its directory.
        step: number of the step, from 1.

    Returns:
        0 and None where the run has to begin from its first step.
    """
    kept = [each for kind in ("resume", "best") for each in list_checkpoints(run.checkpoints, kind)]
    for at, path in sorted(kept, reverse=True):
        if at < step:
            try:
                verify(path, require_sidecar=True)
            except IntegrityError:
                continue
            return at, path
    return 0, None


def recorded(run: RunDirectory) -> dict[int, dict[str, float]]:
    """The :data:`FIGURES` of every logged step, as ``metrics.csv`` has them."""
    found: dict[int, dict[str, float]] = {}
    with run.metrics.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            figures = {name: row[name] for name in FIGURES if row.get(name)}
            if figures:
                found[int(row["step"])] = {name: float(text) for name, text in figures.items()}
    return found


def differing(
    step: Mapping[str, float], row: Mapping[str, float], names: Iterable[str] = FIGURES
) -> list[str]:
    """Names of the figures that are not the same number in both; one that is missing in either is passed over."""
    both = [name for name in names if name in step and name in row]
    return [
        name
        for name in both
        if step[name] != row[name] and not (math.isnan(step[name]) and math.isnan(row[name]))
    ]


def _step_in(name: Any) -> int:
    digits = "".join(filter(str.isdigit, str(name or "")))
    return int(digits or 0)
