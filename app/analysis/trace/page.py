"""A traced text as one HTML page: a colour per token, the measure and the layer chosen by the reader."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from app.analysis.html import Markup, element, page
from app.analysis.trace.script import SCRIPT, STYLE
from app.analysis.trace.texts import CONTINUED, visible
from app.analysis.trace.tokens import Trace, TracedMeasure


def trace_page(trace: Trace, texts: Sequence[str], title: str, subtitle: str) -> str:
    """The page.

    Args:
        trace: of a text.
        texts: what each token stands for.
        title: of the page, such as the run.
        subtitle: one line under it.
    """
    data = {
        "tokens": [visible(text) for text in texts],
        "ids": trace.ids.tolist(),
        "breaks": [index for index, text in enumerate(texts) if text.endswith("\n")],
        "blockSize": trace.block_size,
        "measures": [_packed(name, measure) for name, measure in trace.measures.items()],
    }
    content = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    # Inside of a script element only the end of the element itself could be misread.
    content = content.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    if CONTINUED in texts:
        subtitle += f"; {CONTINUED}: the rest of the character that is shown before it"
    body = [
        element("h1", title),
        element("p", subtitle, class_="soft"),
        Markup('<div id="head"><div id="controls"><label>colour by <select id="measure"></select></label>'
               '<label id="depth">layer <input id="layer" type="range" min="0" value="0"> '
               '<output id="layer-name"></output></label></div><div id="legend" aria-live="polite"></div></div>'
               '<div id="text" tabindex="0" role="group" aria-label="the text; arrow keys move from token to token">'
               '</div><div id="detail" class="soft" aria-live="polite"></div>'),
        element("noscript", "This page draws itself with a script of its own; allow scripts to see it."),
        Markup(f'<script id="data" type="application/json">{content}</script>'),
    ]  # fmt: skip
    return page(title, body, style=STYLE, script=SCRIPT)


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
    finite = rows[np.isfinite(rows)]
    # A single outlier must not take the colours from all others.
    low, high = np.percentile(finite, [1, 99]).tolist() if len(finite) else (0.0, 1.0)
    values = [[float(f"{x:.4g}") if np.isfinite(x) else None for x in row] for row in rows.tolist()]
    return described | {"labels": [], "values": values, "low": low, "high": high}
