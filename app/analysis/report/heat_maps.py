"""The inside of networks as heat-maps that a reader can ask: values on hover and by arrow keys, layers side by side.

The numbers come out of the runs' own figures; a script draws them at the width of the page.
"""

from collections.abc import Sequence
from typing import Any

from app.analysis.html import Markup, data, element
from app.analysis.report.heat_map_script import SCRIPT, STYLE

__all__ = ["PLACE", "SCRIPT", "STYLE", "heat_maps"]

#: where the script finds the numbers
PLACE = "map-data"


def heat_maps(figures: Sequence[tuple[str, str, int, dict[str, Any]]], names: Sequence[str]) -> list[Markup]:
    """A place for each figure, and their numbers; of several runs one quantity and one layer at a time.

    Args:
        figures: file name, run's name, number of the run's colour and numbers; those of one name follow each other.
        names: of all groups; several of them are compared.
    """
    if not figures:
        return []
    is_compared = len(names) > 1
    numbers = [{"name": name, "run": run, "colour": colour} | own for name, run, colour, own in figures]
    controls = Markup(
        '<div id="map-controls"><label id="map-quantity">quantity <select></select></label>'
        '<label id="map-layer">layer <select></select></label></div>'
    )
    how = "Training runs from left to right. To read a value, point at it, or tab to a map and use the arrow keys."
    return [
        element("p", how, class_="soft"),
        controls,
        element("div", id="maps"),
        element(
            "noscript",
            "A script of the page itself draws the maps; allow scripts, or see figures/ of the run.",
        ),
        data(PLACE, {"compared": is_compared, "figures": numbers}),
    ]
