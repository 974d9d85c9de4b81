"""What runs lose without their parts, as ``app ablate`` has measured it: a row for each run."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from app.analysis.ablation_figure import signed
from app.analysis.ablation_kinds import KINDS
from app.analysis.comparison import Group
from app.analysis.html import Markup, element, table
from app.analysis.report import chart
from app.analysis.report.material import Material
from app.analysis.report.values import cut


def ablations(shown: Sequence[tuple[Group, Material]]) -> list[Markup]:
    """A table: of each kind of part the dearest, with its interval; nothing where nothing was measured."""
    rows = []
    found = [(number, group, _entries(material.ablation)) for number, (group, material) in enumerate(shown)]
    for number, group, entries in found:
        for kind in KINDS:
            dearest = max((e for e in entries if e["kind"] == kind), key=lambda e: e["delta"], default=None)
            if dearest is None:
                continue
            where = "network" if dearest["layer"] is None else f"layer {dearest['layer']}"
            low, high = (signed(end) for end in dearest["interval"])
            own = [chart.key(number, group.letter)] if len(shown) > 1 else []
            rows.append(
                [*own, kind, cut(f"{where}: {dearest['label']}"), signed(dearest["delta"]), f"{low} … {high}"]
            )
    if not rows:
        return []
    header = [*([""] if len(shown) > 1 else []), "part", "dearest ablation", "Δ nats", "95 % interval"]
    said = "Loss above the network's own on held-out text, nats per token; paired bootstrap over windows (app ablate)."
    return [
        table(header, rows, numbers=range(len(header) - 2, len(header))),
        element("p", said, class_="soft"),
    ]


def _entries(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those of a file's ablations that are whole: it may be anybody's."""
    listed = summary.get("ablations")
    return [entry for entry in listed if _is_whole(entry)] if isinstance(listed, list) else []


def _is_whole(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("label"), str):
        return False
    ends, layer = entry.get("interval"), entry.get("layer")
    numbers = [entry.get("delta"), *(ends if isinstance(ends, list) and len(ends) == 2 else [None])]
    is_number = all(type(x) in (int, float) and math.isfinite(x) for x in numbers)
    return is_number and entry.get("kind") in KINDS and (layer is None or type(layer) is int)
