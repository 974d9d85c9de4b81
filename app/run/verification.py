"""What the files of a run say of each other: whatever has been changed in one of them is at odds with another."""

import csv
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from app.run import running_hashes
from app.run.bounded import read_json
from app.run.checkpoint import list_checkpoints, read
from app.run.configuration import LAUNCH_KEYS, read_config
from app.run.directory import RunDirectory
from app.run.errors import AppError, IntegrityError
from app.run.history import Launched, launches, pieces
from app.run.manifest import launches_of
from app.run.same_settings import digest
from app.run.saved_state import STATE_KEY, saved_state
from app.run.status import read_status

Row = dict[str, float]


class Finding(NamedTuple):
    """Something that is not as it has to be.

    Attributes:
        where: file, and place in it.
        what: is wrong.
    """

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class Recorded(NamedTuple):
    """What a run's table claims.

    Attributes:
        training: figures by step, of steps that were logged; rows of watchers alone are none.
        validation: figures by step.
    """

    training: dict[int, Row]
    validation: dict[int, Row]


class Content(NamedTuple):
    """A checkpoint of a run that could be read.

    Attributes:
        name: of its file.
        step: by its name.
        content: all of it.
    """

    name: str
    step: int
    content: dict[str, Any]

    @property
    def state(self) -> dict[str, Any]:
        """What the run says of itself in it."""
        found: dict[str, Any] = self.content[STATE_KEY]
        return found


def rows_of(run: RunDirectory) -> Recorded:
    """The rows of ``metrics.csv``.

    Raises:
        IntegrityError: they cannot be read, or a step has two of a kind.
    """
    found = Recorded({}, {})
    try:
        with run.metrics.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                step = int(row.pop("step"))
                numbers = {key: float(text) for key, text in row.items() if text}
                if any(key.startswith("val/") for key in numbers):
                    of_kind = found.validation
                elif "train/loss" in numbers:
                    of_kind = found.training
                else:
                    continue
                if step in of_kind:
                    raise ValueError(f"step {step} has two rows of a kind")
                of_kind[step] = numbers
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise IntegrityError(f"metrics.csv: cannot be read: {error}") from error
    return found


def length_of(run: RunDirectory) -> int | None:
    """The steps that the last launch was to come to; None where it says none."""
    configuration = launches(run)[-1].configuration
    return None if configuration is None else int(configuration["trainer"]["max_steps"])


def checkpoints_of(run: RunDirectory) -> Iterator[Content | Finding]:
    """All checkpoints of a run, or what speaks against one; read one by one."""
    for kind in ("resume", "best"):
        for step, path in list_checkpoints(run.checkpoints, kind):
            try:
                content = read(path, require_sidecar=True)
                saved_state(content, path)
            except IntegrityError as error:
                yield Finding(
                    f"checkpoints/{path.name}", str(error).splitlines()[0].removeprefix(f"{path}: ")
                )
                continue
            yield Content(f"checkpoints/{path.name}", step, content)


def of_files(run: RunDirectory, rows: Recorded) -> Iterator[Finding]:
    """Everything in which the files of a run contradict each other.

    Args:
        run: its directory.
        rows: of its table.
    """
    newest = 0
    yield from _of_launches(run)
    for found in checkpoints_of(run):
        if isinstance(found, Finding):
            yield found
            continue
        newest = max(newest, found.step)
        yield from _of_checkpoint(run, found, rows)
    yield from _of_summary(run, rows)
    yield from _of_rows(run, rows)
    status = read_status(run.status)
    if status is None:
        yield Finding("status.json", "is missing, or cannot be read")
    elif status["state"] in ("finished", "stopped") and status["step"] != newest:
        yield Finding(
            "status.json", f"step is {status['step']}, and the newest whole checkpoint has {newest}"
        )
    last, limit = max(rows.training, default=0), length_of(run)
    if limit is not None and last > limit:
        yield Finding("metrics.csv", f"step {last} has a row, and the run has {limit} steps")


def _of_launches(run: RunDirectory) -> Iterator[Finding]:
    listed = launches_of(run)
    by_digest = {launch.get("configuration_sha256"): launch for launch in listed}
    for file in [run.config, *sorted(run.path.glob("config-*.yaml"))]:
        try:
            text, given = file.read_text(), read_config(file).data
        except (OSError, ValueError, AppError) as error:
            yield Finding(file.name, f"cannot be read: {error}")
            continue
        launch = by_digest.get(digest(text))
        if launch is None or (file == run.config and launch["configuration"] != listed[-1]["configuration"]):
            told = _different(given, listed[-1].get("configuration") or {}) if file == run.config else ""
            yield Finding(file.name, told or "is not what any launch in run.json resolved")
        elif told := _different(given, launch.get("configuration") or {}):
            yield Finding(file.name, told)
    differences = {launch.get("source_diff_sha256") for launch in listed}
    for file in sorted(run.path.glob("source*.diff")):
        if hashlib.sha256(file.read_bytes()).hexdigest() not in differences:
            yield Finding(file.name, "is not the difference that any launch in run.json had")


def _of_checkpoint(run: RunDirectory, found: Content, rows: Recorded) -> Iterator[Finding]:
    state, name = found.state, found.name
    if state["step"] != found.step:
        yield Finding(name, f"is of step {state['step']}")
        return
    for file, what in running_hashes.broken(run, state.get("running_hashes", {})):
        yield Finding(file, f"{what} when {name} was saved")
    launch = pieces(run, max(found.step - 1, 0), max(found.step, 1))[-1].launch
    configuration = launch.configuration or {}
    if told := _different(state["configuration"], configuration):
        yield Finding(name, f"{told} (run.json)")
    if configuration and state["seed"] != configuration.get("seed"):
        yield Finding(name, f"seed is {state['seed']}, not {configuration.get('seed')} (run.json)")
    if launch.data is not None and (told := _different(state["data"], launch.data)):
        yield Finding(name, f"data: {told} (run.json)")
    due = [step for step in rows.validation if step < found.step + (not state["validation_pending"])]
    held = {key: x for key, x in state["last_validation"].items() if not key.endswith("/tokens")}
    if told := _different(held, rows.validation[max(due)] if due else {}):
        yield Finding(name, f"last validation: {told} (metrics.csv)")


def _of_summary(run: RunDirectory, rows: Recorded) -> Iterator[Finding]:
    try:
        summary = read_json(run.summary)
        step = summary["step"]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield Finding("summary.json", f"cannot be read: {error}")
        return
    claimed = rows.training.get(step, {}) | rows.validation.get(step, {})
    losses = {at: row["val/loss"] for at, row in rows.validation.items() if "val/loss" in row and at <= step}
    best = min(losses, key=lambda at: (losses[at], at)) if losses else None
    claimed |= {} if best is None else {"best/val_loss": losses[best], "best/step": best}
    for key in sorted({*claimed} & {*summary}):
        if summary[key] != claimed[key]:
            yield Finding("summary.json", f"{key} is {summary[key]!r}, not {claimed[key]!r} (metrics.csv)")
    if step not in rows.training and rows.training:
        yield Finding("summary.json", f"step is {step}, of which metrics.csv has no row")


def _of_rows(run: RunDirectory, rows: Recorded) -> Iterator[Finding]:
    """Rows that the run's steps do not write, and steps whose rows are missing."""
    last = min(max(rows.training, default=0), length_of(run) or 0)
    for piece in pieces(run, 0, last):
        if piece.launch.configuration is None:
            continue
        trainer = _trainer(piece.launch)
        for step in range(piece.first + 1, piece.last + 1):
            is_logged = step in (1, trainer["max_steps"]) or step % trainer["log_every_n_steps"] == 0
            if is_logged != (step in rows.training):
                what = "is missing" if is_logged else "is one that no step of the run writes"
                yield Finding("metrics.csv", f"the row of step {step} {what}")
            due = trainer.get("limit_val_batches") != 0 and step % int(trainer["val_check_interval"]) == 0
            if due and step < last and step not in rows.validation:
                yield Finding("metrics.csv", f"the validation row of step {step} is missing")


def _trainer(launch: Launched) -> Mapping[str, Any]:
    configuration = launch.configuration or {}
    found: Mapping[str, Any] = configuration["trainer"]
    return found


def _different(given: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first keys that both have and whose values are not the same, in words; empty where there is none."""
    ours, theirs = (
        _flat({k: v for k, v in each.items() if k not in LAUNCH_KEYS}) for each in (given, wanted)
    )
    wrong = [key for key in sorted({*ours} & {*theirs}) if ours[key] != theirs[key]]
    told = [f"{key} is {ours[key]!r:.80}, not {theirs[key]!r:.80}" for key in wrong[:3]]
    return "; ".join([*told, *([f"{len(wrong) - 3} more"] if len(wrong) > 3 else [])])


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        flat |= _flat(entry, f"{prefix}.{key}" if prefix else str(key))
    return flat
