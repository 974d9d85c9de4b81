"""Running hashes of the files of a run that grow by steps: a checkpoint carries those of all that was settled by then.

Each is a chain: SHA-256 of the hash so far and the next entry. An entry is what two equal runs have alike: a row of
``metrics.csv`` without its empty cells and without what the clock makes, a line of the others as it is.
"""

import csv
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from app.run.directory import RunDirectory

TABLE = "metrics.csv"
LINES = ("details.jsonl", "health.jsonl", "samples.jsonl")
#: keys whose numbers the clock or the machine makes
OF_THE_CLOCK = ("speed/", "DeviceStatsMonitor")


class RunningHash:
    """The chain of a file.

    Attributes:
        entries: so far.
        digest: of them, in hexadecimal; empty before the first one.
    """

    def __init__(self) -> None:
        self.entries = 0
        self.digest = ""

    def add(self, entries: Iterable[str]) -> None:
        """Adds entries at the end."""
        for entry in entries:
            self.digest = hashlib.sha256(
                f"{self.digest}\n{entry}".encode(errors="surrogateescape")
            ).hexdigest()
            self.entries += 1

    def described(self) -> dict[str, Any]:
        """As a checkpoint carries it."""
        return {"entries": self.entries, "sha256": self.digest}


def row_entry(step: int | str, numbers: Mapping[str, str]) -> str:
    """The entry of a row.

    Args:
        step: of the row.
        numbers: key to text; empty ones count as absent.
    """
    kept = sorted(key for key, text in numbers.items() if text and not key.startswith(OF_THE_CLOCK))
    return ",".join([str(step), *(f"{key}={numbers[key]}" for key in kept)])


def broken(run: RunDirectory, carried: Any) -> Iterator[tuple[str, str]]:
    """File and what is wrong with it, of each that does not begin with the entries that a checkpoint has the hash of.

    Args:
        run: its directory.
        carried: by file, as :meth:`RunningHash.described` gives it.
    """
    for name, described in carried.items() if isinstance(carried, dict) else ():
        wanted = described.get("entries") if isinstance(described, dict) else None
        if name not in (TABLE, *LINES) or type(wanted) is not int:
            yield str(name)[:40], "has a running hash that cannot be read"
            continue
        found, last = RunningHash(), ""
        for where, entry in entries_of(run.path / name):
            if found.entries == wanted:
                break
            found.add([entry])
            last = where
        if found.entries < wanted:
            yield name, f"has {found.entries} entries, and {wanted} were settled"
        elif found.digest != described.get("sha256"):
            yield name, f"what it has up to {last} is not what was settled"


def entries_of(file: Path) -> Iterator[tuple[str, str]]:
    """Place and entry of each complete row or line of a file; none where it is missing."""
    if not file.exists():
        return
    with file.open(newline="", encoding="utf-8", errors="surrogateescape") as text:
        if file.name == TABLE:
            for row in csv.DictReader(text):
                step = row.pop("step", "")
                yield f"step {step}", row_entry(step, {k: v for k, v in row.items() if k is not None and v})
        else:
            for number, line in enumerate(text, start=1):
                yield f"line {number}", line.removesuffix("\n")
