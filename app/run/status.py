"""``status.json``: what a run is doing, or how it ended."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from app.run.atomic import write_json
from app.run.checkpoint import list_checkpoints, sidecar_path
from app.run.directory import RunDirectory
from app.run.lock import is_held

State = Literal["starting", "running", "finished", "stopped", "failed"]
_LIVE = ("starting", "running")


def write_status(
    path: str | os.PathLike[str], state: State, step: int, exit_code: int | None = None, reason: str = ""
) -> None:
    """Replaces the status file atomically.

    Args:
        path: the status file.
        state: ``starting`` until the first step, ``running``, then one of ``finished`` (all steps done),
            ``stopped`` (by a signal) and ``failed``.
        step: completed optimizer steps.
        exit_code: what the process ends with; None while it runs.
        reason: one line for people; empty where there is nothing to say.
    """
    if state not in get_args(State):
        raise ValueError(f"state is {state!r}, must be one of {', '.join(get_args(State))}")
    write_json(
        path,
        {
            "state": state,
            "step": int(step),
            "exit_code": None if exit_code is None else int(exit_code),
            "reason": reason,
            "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        },
    )


def read_status(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The content of a status file; None when it is missing or damaged."""
    try:
        found = json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("state"), str):
        return None
    return found if type(found.get("step")) is int else None


def true_state(run_directory: RunDirectory) -> str:
    """The state of a run as it is: ``killed`` where the file says it runs but nobody alive holds the lock.

    ``unknown`` when there is no readable status file.
    """
    found = read_status(run_directory.status)
    if found is None:
        return "unknown"
    if found["state"] in _LIVE and not is_held(run_directory.path):
        return "killed"
    return str(found["state"])


def finished(run_directory: RunDirectory, max_steps: int) -> bool:
    """Whether a run has nothing left to do, decided in milliseconds.

    True when the status says ``finished`` at ``max_steps`` or later and the newest resume checkpoint, of that
    very step, lies there whole with its sidecar. The file is not hashed again: that would take seconds for a
    large one, and nothing is going to be loaded from it here; every command that loads it does verify it.
    """
    found = read_status(run_directory.status)
    if found is None or found["state"] != "finished" or found["step"] < max_steps:
        return False
    checkpoints = list_checkpoints(run_directory.checkpoints)
    if not checkpoints:
        return False
    step, path = checkpoints[-1]
    return step == found["step"] and sidecar_path(path).is_file() and path.stat().st_size > 0
