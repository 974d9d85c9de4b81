"""What the health watcher found, each finding once, from where it began to where it ended."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from app.analysis.html import Markup, element, table
from app.analysis.report.material import Material
from app.analysis.report.values import cut

MAX_FINDINGS, MAX_PLACES = 100, 12
WATCHER = "RunHealth"


class _Row(NamedTuple):
    """What a row of the table says, but for the places."""

    is_open: bool
    step: int
    name: str
    steps: str
    condition: str
    what: str
    remedy: str


def findings(materials: Mapping[str, Material], names: Mapping[str, str]) -> list[Markup]:
    """A table of all runs' findings, the open ones first, and who was not looked at.

    What is the same of several places at the same steps is one row.

    Args:
        materials: path of a run to what it has left.
        names: path of a run to its name in the table.
    """
    places: dict[_Row, list[str]] = {}
    for path, material in materials.items():
        for line, end in _spans(material.health):
            steps = f"{line['step']:,}–{end:,}" if end is not None else f"{line['step']:,} – still so"
            row = _Row(end is None, line["step"], names[path], steps, cut(line.get("condition", line["key"])),
                       cut(line.get("what", "")), cut(line.get("remedy", "")))  # fmt: skip
            places.setdefault(row, []).append(cut(line.get("place", "")))
    rows = []
    for row, found in sorted(places.items(), key=lambda item: (not item[0].is_open, item[0].step)):
        cells = [row.steps, row.condition, _together(found), row.what, row.remedy]
        rows.append(cells if len(materials) == 1 else [row.name, *cells])
    parts = [element("p", sentence, class_="soft") for sentence in _who_was_watched(materials, names)]
    if not rows:
        return parts
    header = ["steps", "finding", "where", "what", "try first"]
    if len(materials) > 1:
        header.insert(0, "run")
    parts.append(table(header, rows[:MAX_FINDINGS], numbers=[header.index("steps")]))
    if len(rows) > MAX_FINDINGS:
        parts.append(element("p", f"{len(rows) - MAX_FINDINGS} more in health.jsonl.", class_="soft"))
    return parts


def _together(places: list[str]) -> str:
    shown = "; ".join(places[:MAX_PLACES])
    return f"{shown}; {len(places) - MAX_PLACES} more" if len(places) > MAX_PLACES else shown


def _who_was_watched(materials: Mapping[str, Material], names: Mapping[str, str]) -> list[str]:
    sound: list[str] = []
    unwatched: list[str] = []
    for path, material in materials.items():
        if not material.health:
            is_watched = any(WATCHER in key for key in material.run.configuration)
            (sound if is_watched else unwatched).append(names[path])
    if len(materials) == 1:
        said = [f"callbacks.{WATCHER} watched and found nothing wrong."] if sound else []
        return said + ([f"Not watched: callbacks.{WATCHER} is not among the callbacks."] if unwatched else [])
    said = [f"Watched, and nothing found wrong: {'; '.join(sound)}."] if sound else []
    return said + (
        [f"Not watched, without callbacks.{WATCHER}: {'; '.join(unwatched)}."] if unwatched else []
    )


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
