"""``status.json``: what a run is doing, or how it ended."""

import os
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from app.run.atomic import json_text, write_json
from app.run.bounded import read_json
from app.run.checkpoint import list_checkpoints, sidecar_path
from app.run.directory import RunDirectory
from app.run.errors import StorageError
from app.run.lock import is_held
from app.run.output import unprinted
from app.run.storage import overwrite

State = Literal["starting", "running", "finished", "stopped", "failed"]
_LIVE = ("starting", "running")
#: bytes of the smallest block that file systems in use have: a file up to this size is in one block
SMALLEST_BLOCK = 1024


def write_status(
    path: str | os.PathLike[str], state: State, step: int, exit_code: int | None = None, reason: str = ""
) -> None:
    """Replaces the status file, atomically unless the disk takes no new file: then what is there is overwritten.

    It also says what this process could not print so far.

    Args:
        path: the status file.
        state: ``starting`` until the first step, ``running``, then one of ``finished`` (all steps done, or ended
            before them by what the reason names), ``stopped`` (by a signal) and ``failed``.
        step: completed optimizer steps.
        exit_code: what the process ends with; None while it runs.
        reason: one line for people; empty where there is nothing to say.

    Raises:
        StorageError: it cannot be written.
    """
    if state not in get_args(State):
        raise ValueError(f"state is {state!r}, must be one of {', '.join(get_args(State))}")
    content = {
        "state": state,
        "step": int(step),
        "exit_code": None if exit_code is None else int(exit_code),
        "reason": reason,
        "unprinted": unprinted(),
        "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    try:
        write_json(path, content)
    except StorageError as error:
        small = content | {"unprinted": None}  # why the run ended comes first
        excess = max(len(json_text(small).encode()) - SMALLEST_BLOCK, 0)
        shorter = json_text(small | {"reason": reason[: max(len(reason) - excess, 0)]})
        try:
            overwrite(path, shorter)
        except StorageError:
            raise error from None


def read_status(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The content of a status file; None when it is missing or damaged."""
    try:
        found = read_json(path)
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

    True when the status says ``finished`` at ``max_steps`` or later, or before and why, and the newest resume
    checkpoint, of that very step, lies there whole with its sidecar. The file is not hashed again: that would take
    seconds for a large one, and nothing is going to be loaded from it here; every command that loads it does verify it.
    """
    found = read_status(run_directory.status)
    if found is None or found["state"] != "finished":
        return False
    if found["step"] < max_steps and not found.get("reason"):
        return False
    checkpoints = list_checkpoints(run_directory.checkpoints)
    if not checkpoints:
        return False
    step, path = checkpoints[-1]
    return step == found["step"] and sidecar_path(path).is_file() and path.stat().st_size > 0


def finished_words(run_directory: RunDirectory) -> str:
    """What a person is told who resumes a run with nothing left to do."""
    reason = (read_status(run_directory.status) or {}).get("reason")
    if not reason:
        return f"{run_directory} is finished; nothing to do"
    return (
        f"{run_directory} is finished ({reason}); nothing to do, unless with a greater trainer.max_steps, or another "
        "trainer.max_time, Timer or EarlyStopping"
    )
