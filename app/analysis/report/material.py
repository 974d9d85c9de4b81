"""What a report is made of."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.analysis.comparison import Run


@dataclass
class Material:
    """All that a run has left for a reader.

    Attributes:
        run: configuration, curves and summary.
        status: of ``status.json``; empty where there is none.
        launches: of ``run.json``, first to last.
        samples: lines of ``samples.jsonl``: ``step``, ``key``, ``text``.
        health: lines of ``health.jsonl``.
        ablation: what ``app ablate`` has found; empty where it has not been asked.
        routing: what ``app study routing`` has found; empty where it has not been asked.
        routing_figures: its pictures, file name to content.
        figures: name of a picture to the PNG file's content, in the order in which they are shown.
    """

    run: Run
    status: dict[str, Any] = field(default_factory=dict)
    launches: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    health: list[dict[str, Any]] = field(default_factory=list)
    ablation: dict[str, Any] = field(default_factory=dict)
    routing: dict[str, Any] = field(default_factory=dict)
    routing_figures: dict[str, bytes] = field(default_factory=dict)
    figures: dict[str, bytes] = field(default_factory=dict)


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects of a file of JSON lines; none where there is no file.

    Returns:
        Those with a number ``step`` and a text ``key``, and how many other lines were left out.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return [], 0
    found, n_damaged = [], 0
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if (
            isinstance(record, dict)
            and isinstance(record.get("step"), int)
            and isinstance(record.get("key"), str)
        ):
            found.append(record)
        else:
            n_damaged += 1
    return found, n_damaged
