"""The text files of a run that grow by steps, and how they survive crashes and go on after a resume."""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from app.run.atomic import sync_directory, write_text
from app.run.running_hashes import RunningHash, row_entry
from app.run.storage import require_linked, write_at, writing
from app.run.strict_json import to_json


class StepFile:
    """A text file that grows by steps; only the lines of the newest step may still change.

    Those are rewritten in place with one system call, everything before them is never touched: a kill at any
    moment tears at most a line of the step that was being written.

    Raises:
        StorageError: from every method, when the file cannot be written.
    """

    def __init__(self, path: Path):
        self._path = path
        with writing(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            sync_directory(path.parent)  # a line that was synced is lost with the name of its file
        self._settled = self._size = os.fstat(self._descriptor).st_size  # bytes of older steps, of all
        self.running_hash = RunningHash()  # of what is settled

    def _read(self) -> list[str]:
        """Complete lines of the file; a last line without its end is left out."""
        with writing(self._path):
            return self._path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]

    def _restore(self, head: str, lines: list[tuple[int, str]]) -> tuple[int | None, list[str]]:
        """Keeps ``head`` and these ``(step, line)`` of the file; returns the newest step and its lines."""
        newest_step = lines[-1][0] if lines else None
        n_older = len(lines)
        while n_older and lines[n_older - 1][0] == newest_step:
            n_older -= 1
        texts = [text + "\n" for _, text in lines]
        self._replace(head + "".join(texts[:n_older]), "".join(texts[n_older:]))
        return newest_step, [text for _, text in lines[n_older:]]

    def _replace(self, older: str, newest: str) -> None:
        """Replaces the whole file atomically, unless it holds just this."""
        older_bytes, content = older.encode(), (older + newest).encode()
        with writing(self._path):
            if content != self._path.read_bytes():
                write_text(self._path, older + newest)
                os.close(self._descriptor)
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        self._settled, self._size = len(older_bytes), len(content)

    def _settle(self, entries: Iterable[str]) -> None:
        """Begins a new step: what is in the file now stays.

        Args:
            entries: of the step before it.
        """
        self._settled = self._size
        self.running_hash.add(entries)

    def _rewrite(self, newest: str) -> None:
        """Writes the lines of the newest step in place of its earlier ones."""
        end = write_at(self._descriptor, newest.encode(), self._settled, self._path)
        if end < self._size:
            with writing(self._path):
                os.ftruncate(self._descriptor, end)
        self._size = end

    def sync(self) -> None:
        """Puts the file on the disk."""
        with writing(self._path):
            os.fsync(self._descriptor)
        require_linked(self._descriptor, self._path)


class MetricsTable(StepFile):
    """``metrics.csv``: the column ``step``, the named columns, then one per further key as they appear.

    A step has at most one row per stage: one for training and, if any of its keys starts with ``val/`` or
    ``test/``, one for that stage. Keys that come later for the same step and stage join the row; a new key
    widens the table, for which the file is rewritten atomically.

    Args:
        path: the file; made if it is not there.
        resume_step: rows of later steps are dropped; None keeps every complete row.
        columns: keys that a new table begins with.

    Raises:
        ValueError: if the file is there and is no table of steps.
    """

    def __init__(self, path: Path, resume_step: int | None, columns: Sequence[str] = ()):
        super().__init__(path)
        header, *lines = self._read() or [",".join(("step", *columns))]
        self._columns = next(csv.reader([header]))
        if self._columns[:1] != ["step"]:
            raise ValueError(
                f"{path} does not begin with the column `step`, so it is no metrics file; move it away"
            )
        parsed = [(_row_step(line, len(self._columns)), line) for line in lines]
        kept = [(step, line) for step, line in parsed if step is not None and _is_kept(step, resume_step)]
        self._step, newest = self._restore(_csv_line(self._columns), kept)
        older = kept[: len(kept) - len(newest)]
        self.running_hash.add(row_entry(step, _cells(line, self._columns)) for step, line in older)
        self._rows: dict[str, dict[str, str]] = {}  # the newest step's, by stage
        for line in newest:
            row = _cells(line, self._columns)
            self._rows.setdefault(_stage(row), {}).update(row)

    def add(self, step: int, numbers: Mapping[str, str]) -> None:
        """Joins numbers to the row of their step and stage.

        Args:
            step: completed optimizer steps.
            numbers: key to the text of a number.
        """
        if step != self._step:
            self._settle(row_entry(str(self._step), row) for row in self._rows.values())
            self._step, self._rows = step, {}
        self._rows.setdefault(_stage(numbers), {}).update(numbers)
        new_keys = [key for key in numbers if key not in self._columns]
        if new_keys:
            self._columns.extend(new_keys)
            with writing(self._path):
                older = self._path.read_bytes()[: self._settled].decode().split("\n")[1:-1]
            widened = [line + "," * len(new_keys) + "\n" for line in older]
            self._replace(_csv_line(self._columns) + "".join(widened), self._newest())
        else:
            self._rewrite(self._newest())

    def _newest(self) -> str:
        """The lines of the newest step."""
        cells = (
            [str(self._step), *(row.get(key, "") for key in self._columns[1:])] for row in self._rows.values()
        )
        return "".join(map(_csv_line, cells))


class KeyedLines(StepFile):
    """JSON lines ``{"step": …, "key": …, …}``, at most one per step and key.

    Args:
        path: the file; made if it is not there.
        resume_step: lines of later steps are dropped; None keeps every complete line.
    """

    def __init__(self, path: Path, resume_step: int | None):
        super().__init__(path)
        parsed = [(_address(line), line) for line in self._read()]
        kept = [
            (address[0], line) for address, line in parsed if address and _is_kept(address[0], resume_step)
        ]
        self._step, newest = self._restore("", kept)
        self.running_hash.add(line for _, line in kept[: len(kept) - len(newest)])
        self._lines = {json.loads(line)["key"]: line for line in newest}  # the newest step's

    def put(self, step: int, lines: Mapping[str, Mapping[str, Any]]) -> None:
        """Adds one line per key, in place of an earlier one of the same step and key.

        Args:
            step: completed optimizer steps.
            lines: key to the further fields of its line; numbers that are not finite become null.
        """
        if step != self._step:
            self._settle(self._lines.values())
            self._step, self._lines = step, {}
        for key, fields in lines.items():
            self._lines[key] = to_json({"step": step, "key": key, **fields})
        self._rewrite("".join(line + "\n" for line in self._lines.values()))


def read_training_row(path: Path, step: int | None) -> tuple[list[str], dict[str, float]]:
    """The keys of a ``metrics.csv``, and the numbers of the training row of a step.

    Both are empty where there is no file, the numbers also where there is no such row.
    """
    if not path.exists():
        return [], {}
    header, *lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] or [""]
    columns = next(csv.reader([header]), [])
    of_step = [
        line for line in lines if line.startswith(f"{step},") and _row_step(line, len(columns)) == step
    ]
    rows = [_cells(line, columns) for line in of_step]
    training = next((row for row in rows if _stage(row) == "train"), {})
    return columns[1:], {key: float(cell) for key, cell in training.items()}


def read_rows(path: Path, step: int) -> Iterator[dict[str, float]]:
    """The numbers of all complete rows of a ``metrics.csv`` up to a step, in order; none where there is no file."""
    if not path.exists():
        return
    header, *lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] or [""]
    columns = next(csv.reader([header]), [])
    for line in lines:
        of_row = _row_step(line, len(columns))
        if of_row is not None and of_row <= step:
            yield {key: float(cell) for key, cell in _cells(line, columns).items()}


def _cells(line: str, columns: Sequence[str]) -> dict[str, str]:
    """The numbers of a complete row, without its step."""
    cells = zip(columns[1:], line.split(",")[1:], strict=True)
    return {key: cell for key, cell in cells if cell}


def _stage(keys: Iterable[str]) -> str:
    """Which row of a step these keys belong to."""
    prefixes = {key.partition("/")[0] for key in keys}
    return next((stage for stage in ("val", "test") if stage in prefixes), "train")


def _is_kept(step: int, resume_step: int | None) -> bool:
    return resume_step is None or step <= resume_step


def _csv_line(cells: Iterable[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _row_step(line: str, n_columns: int) -> int | None:
    """The step of a row; None for what a crash left of one."""
    step, *numbers = line.split(",")
    try:
        for number in numbers:
            float(number or "nan")
        return int(step) if len(numbers) == n_columns - 1 else None
    except ValueError:
        return None


def _address(line: str) -> tuple[int, str] | None:
    """Step and key of a line; None for what a crash left of one."""
    try:
        record = json.loads(line)
        return int(record["step"]), str(record["key"])
    except (ValueError, KeyError, TypeError):
        return None
