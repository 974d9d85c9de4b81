"""A traced text as one HTML page: a colour per token, the measure and the layer chosen by the reader."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from app.analysis import drawable
from app.analysis.html import Markup, data, element, page
from app.analysis.trace.script import SCRIPT, STYLE
from app.analysis.trace.texts import CONTINUED, parts_of_characters, visible
from app.analysis.trace.tokens import Trace, TracedMeasure


class TracedRun(NamedTuple):
    """One network's reading of the text.

    Attributes:
        trace: of the text.
        texts: what each token stands for.
        title: whose reading it is.
    """

    trace: Trace
    texts: Sequence[str]
    title: str


def trace_page(runs: Sequence[TracedRun], title: str, subtitle: str) -> str:
    """The page.

    Args:
        runs: one, or several beside each other.
        title: of the page, such as the run.
        subtitle: one line under it.
    """
    if any(CONTINUED in run.texts for run in runs):
        subtitle += f"; {CONTINUED}: the rest of the character that is shown before it"
    body = [
        element("h1", title),
        element("p", subtitle, class_="soft"),
        Markup('<div id="head"><div id="controls"><label>colour by <select id="measure"></select></label>'
               '<span id="depth"><label>layer <input id="layer" type="range" min="0" value="0"> '
               '<output id="layer-name"></output></label> '
               '<span class="soft">keys <kbd>n</kbd> <kbd>p</kbd>: next and previous layer</span></span></div>'
               '<p id="said"></p></div><div id="runs"></div>'),
        element("noscript", "This page draws itself with a script of its own; allow scripts to see it."),
        data("data", {"runs": [_read(run) for run in runs]}),
    ]  # fmt: skip
    return page(title, body, style=STYLE, script=SCRIPT)


def _read(run: TracedRun) -> dict[str, Any]:
    """A reading as plain values."""
    return {
        "title": run.title,
        "tokens": [visible(text) for text in run.texts],
        "lengths": [0 if text == CONTINUED else len(text) for text in run.texts],
        "parts": parts_of_characters(run.texts),
        "ids": run.trace.ids.tolist(),
        "breaks": [index for index, text in enumerate(run.texts) if text.endswith("\n")],
        "blockSize": run.trace.block_size,
        "measures": [_packed(name, measure) for name, measure in run.trace.measures.items()],
    }


def _packed(name: str, measure: TracedMeasure) -> dict[str, Any]:
    """A measure as plain values: per layer one list, numbers with four digits, null where there is none."""
    rows = np.atleast_2d(measure.values)
    described: dict[str, Any] = {
        "name": name,
        "unit": "" if measure.unit == name else measure.unit,
        "said": measure.meaning,
        "layered": measure.values.ndim == 2,
    }
    if measure.labels:
        return described | {"labels": list(measure.labels), "values": rows.tolist()}
    rows = drawable.numbers(rows)
    finite = rows[np.isfinite(rows)]
    # A single outlier must not take the colours from all others.
    low, high = np.percentile(finite, [1, 99]).tolist() if len(finite) else (0.0, 1.0)
    values = [[float(f"{x:.4g}") if np.isfinite(x) else None for x in row] for row in rows.tolist()]
    return described | {"labels": [], "values": values, "low": low, "high": high}
