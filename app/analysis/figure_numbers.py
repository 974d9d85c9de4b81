"""The numbers of a figure, carried inside of its PNG file: a page draws them anew, at any width and with values.

They are one JSON object in a compressed text chunk, in the words that the figure itself uses.
"""

import json
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

KEY = "archlab"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: no figure of ours has more text than this, whatever a file claims
MAX_CHARACTERS = 16 * 2**20


def plain(matrix: np.ndarray) -> list[list[float | None]]:
    """Rows of numbers with four digits, None where there is none."""
    return [[float(f"{x:.4g}") if np.isfinite(x) else None for x in row] for row in matrix.tolist()]


def chunk(numbers: dict[str, Any]) -> Any:
    """What the plotting library's writer of PNG files takes as text."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    text = json.dumps(numbers, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    info.add_text(KEY, text, zip=True)
    return info


def numbers_of(png: bytes) -> dict[str, Any] | None:
    """The numbers of a figure; None of a picture that carries none, or none that can be drawn."""
    if not png.startswith(_SIGNATURE):
        return None
    at = len(_SIGNATURE)
    while at + 12 <= len(png):
        length, kind = int.from_bytes(png[at : at + 4], "big"), png[at + 4 : at + 8]
        if kind == b"zTXt":
            name, _, rest = png[at + 8 : at + 8 + length].partition(b"\0")
            if name == KEY.encode():
                return _read(rest[1:])  # after the method, of which there is one
        if kind == b"IEND":
            return None
        at += 12 + length
    return None


def _read(compressed: bytes) -> dict[str, Any] | None:
    try:
        inflater = zlib.decompressobj()
        text = inflater.decompress(compressed, MAX_CHARACTERS)
        found = json.loads(text) if inflater.eof else None
    except (zlib.error, ValueError, RecursionError):
        return None
    return found if is_drawable(found) else None


def is_drawable(found: Any) -> bool:
    """Whether this is a figure as ours are, each row as long as there are columns."""
    if not isinstance(found, dict):
        return False
    steps, layers, panels = (found.get(key) for key in ("steps", "layers", "panels"))
    if not (_are(steps, (int, float)) and _are(layers, (str,)) and len(steps or ()) > 1 and layers):
        return False
    if found.get("kind") not in ("maps", "lines") or not isinstance(panels, list) or not panels:
        return False
    texts = (found.get(key) for key in ("subject", "meaning", "inner", "stamp"))
    assert steps is not None and layers is not None
    return all(isinstance(text, str) for text in texts) and all(
        _is_panel(panel, len(steps) - 1, len(layers)) for panel in panels
    )


def _is_panel(panel: Any, n_columns: int, n_layers: int) -> bool:
    if not isinstance(panel, dict) or not all(
        isinstance(panel.get(key), str) for key in ("title", "unit", "white")
    ):
        return False
    rows, entries = panel.get("values"), panel.get("entries")
    if not isinstance(rows, list) or not _are(entries, (str,)) or len(rows) != n_layers * len(entries or ()):
        return False
    marks, labels = panel.get("marks"), panel.get("labels")
    if not (_are(marks, (int, float)) and _are(labels, (str,)) and len(marks) == len(labels) == 3):  # type: ignore[arg-type]
        return False
    return isinstance(panel.get("diverging"), bool) and all(
        isinstance(row, list)
        and len(row) == n_columns
        and all(x is None or (isinstance(x, int | float) and np.isfinite(x)) for x in row)
        for row in rows
    )


def _are(values: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(values, list) and all(isinstance(x, kinds) and not isinstance(x, bool) for x in values)


def panel(
    title: str, unit: str, entries: Sequence[str], matrix: np.ndarray, scale: Any, white: str = ""
) -> dict[str, Any]:
    """One panel as plain values.

    Args:
        title: above it.
        unit: of the numbers.
        entries: a name for each row of a layer; one empty name where a layer has one row.
        matrix: ``(layers · entries, columns)``.
        scale: of its colours, see :class:`app.analysis.colours.Scale`.
        white: what white means.
    """
    return {
        "title": title,
        "unit": unit,
        "white": white,
        "entries": list(entries),
        "values": plain(matrix),
        "marks": [float(mark) for mark in scale.marks],
        "labels": list(scale.labels),
        "diverging": scale.neutral is not None,
    }
