"""What the health watcher found, each finding once, from where it began to where it ended."""

from collections.abc import Mapping
from typing import Any

from app.analysis.html import Markup, element, table
from app.analysis.report.material import Material

MAX_FINDINGS = 100


def findings(materials: Mapping[str, Material]) -> list[Markup]:
    """A table of all runs' findings, the open ones first.

    Args:
        materials: path of a run to what it has left.
    """
    rows: list[tuple[bool, int, list[object]]] = []
    for path, material in materials.items():
        for line, end in _spans(material.health):
            steps = f"{line['step']:,} – {end:,}" if end is not None else f"{line['step']:,} – still so"
            what = f"{line.get('what', '')}"
            cells: list[object] = [steps, line.get("condition", line["key"]), line.get("place", ""), what,
                                   line.get("remedy", "")]  # fmt: skip
            rows.append((end is None, line["step"], [path, *cells] if len(materials) > 1 else cells))
    if not rows:
        return [element("p", "Nothing was found wrong, or callbacks.RunHealth did not look.", class_="soft")]
    rows.sort(key=lambda row: (not row[0], row[1]))
    header = ["steps", "finding", "where", "what", "try first"]
    parts = [
        table(["run", *header] if len(materials) > 1 else header, [row[2] for row in rows[:MAX_FINDINGS]])
    ]
    if len(rows) > MAX_FINDINGS:
        parts.append(element("p", f"{len(rows) - MAX_FINDINGS} more in health.jsonl.", class_="soft"))
    return parts


def _spans(lines: list[dict[str, Any]]) -> list[tuple[dict[str, Any], int | None]]:
    """Each beginning and the step of its end; None where it still holds."""
    spans: list[tuple[dict[str, Any], int | None]] = []
    is_open: dict[str, int] = {}
    for line in lines:
        if line.get("state") == "ends":
            number = is_open.pop(line["key"], None)
            if number is not None:
                spans[number] = (spans[number][0], line["step"])
        else:
            is_open[line["key"]] = len(spans)
            spans.append((line, None))
    return spans
