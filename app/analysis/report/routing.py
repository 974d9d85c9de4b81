"""What the choices of runs are worth, as ``app study routing`` has measured it: a row a router, and its pictures."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from app.analysis.ablation_figure import signed
from app.analysis.comparison import Group
from app.analysis.html import Markup, element, png_image, table
from app.analysis.report import chart
from app.analysis.report.material import Material
from app.analysis.report.values import cut

STYLE = """
.asked { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 0 1.4rem; }
"""


def routing(shown: Sequence[tuple[Group, Material]]) -> list[Markup]:
    """The verdict, a table and the pictures of each run that was asked; nothing where none was."""
    parts: list[Markup] = []
    for number, (group, material) in enumerate(shown):
        found = material.routing
        rows = [_row(entry) for entry in _listed(found, "routers") if _is_whole(entry, "effect")]
        if not rows:
            continue
        if len(shown) > 1:
            parts.append(element("h3", chart.key(number, group.letter), cut(group.label)))
        parts.append(element("p", cut(str(found.get("verdict", "")), 600)))
        parts.append(table(("router", "verdict", "Δ nats", "95 % interval"), rows, numbers=(2, 3)))
        controls = [_row(entry) for entry in _listed(found, "controls") if _is_whole(entry, "difference")]
        if controls:
            parts.append(
                table(("against", "the choice is", "Δ nats", "95 % interval"), controls, numbers=(2, 3))
            )
        said = (
            "Router: nats per token by which its other choices are worse in the trained network, each exchanged for "
            "one token with all after it recomputed; bootstrap over windows. Against: loss with the router less that "
            "of a network trained without (app study routing)."
        )
        parts.append(element("p", said, class_="soft"))
        asked = [
            element(
                "figure", element("figcaption", question), png_image(material.routing_figures[name], question)
            )
            for name, question in _pictures(found)
            if name in material.routing_figures
        ]
        if asked:
            parts.append(element("div", *asked, class_="asked"))
    return parts


def _listed(found: Mapping[str, Any], key: str) -> list[Any]:
    listed = found.get(key)
    return listed if isinstance(listed, list) else []


def _pictures(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    listed = found.get("pictures")
    return [(str(k), cut(str(v))) for k, v in listed.items()] if isinstance(listed, dict) else []


def _row(entry: Mapping[str, Any]) -> list[str]:
    value = entry["effect"] if "effect" in entry else entry["difference"]
    low, high = (signed(end) for end in entry["interval"])
    name = entry["name"] if "name" in entry else entry["control"]
    return [cut(name), cut(entry["verdict"]), signed(value), f"{low} … {high}"]


def _is_whole(entry: Any, key: str) -> bool:
    """A file may be anybody's."""
    if not isinstance(entry, dict) or not isinstance(entry.get("verdict"), str):
        return False
    ends = entry.get("interval")
    numbers = [entry.get(key), *(ends if isinstance(ends, list) and len(ends) == 2 else [None])]
    return isinstance(entry.get("name" if key == "effect" else "control"), str) and all(
        type(x) in (int, float) and math.isfinite(x) for x in numbers
    )
