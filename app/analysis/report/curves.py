"""The learning curves of a report: loss at equal tokens and at equal time."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from app.analysis.comparison import Comparison, Group
from app.analysis.comparison_figure import (
    MOST_WITH_TRAINING,
    SMOOTHED_SHARE,
    START_SHARE,
    Curve,
    curve_of,
)
from app.analysis.curves import time_unit
from app.analysis.html import Markup, element
from app.analysis.report import chart
from app.analysis.report.chart import Line, line_chart


class _Panel(NamedTuple):
    """One horizontal axis: its title, its key, its label and what a number on it is worth."""

    title: str
    key: str
    label: str
    unit: float


def curves(comparison: Comparison, is_single: bool) -> list[Markup]:
    """A legend and two charts, as far as something was logged.

    Args:
        comparison: of one run or of several.
        is_single: of one run: training and validation differ in colour; else the groups do.
    """
    groups = comparison.groups
    loss_key = comparison.loss_key
    label = f"loss, {'nats per token' if loss_key == 'val/loss' else 'bits per byte'}"
    train_key = loss_key.replace("val/", "train/")
    has_training = len(groups) <= MOST_WITH_TRAINING
    charts, is_cut = [], False
    for panel in _panels(groups, is_single):
        training = [curve_of(group.runs, panel.key, train_key, SMOOTHED_SHARE) for group in groups]
        validation = [curve_of(group.runs, panel.key, loss_key) for group in groups]
        if not any(len(curve.x) for curve in (*training, *validation)):
            continue
        lines = []
        for number, (coarse, fine) in enumerate(zip(validation, training, strict=True)):
            if has_training or not len(coarse.x):
                lines.append(_line(fine, number, panel.unit, is_main=False))
            lines.append(_line(coarse, 1 if is_single else number, panel.unit, is_main=True))
        limits = _limits(validation, training, is_single)
        is_cut = is_cut or bool(limits and any((line.y > limits[1]).any() for line in lines))
        charts.append(element("div", line_chart(lines, panel.label, label, panel.title, limits)))
    if not charts:
        return [element("p", "Nothing logged yet.", class_="soft")]
    return [_legend(groups, is_single, has_training, is_cut), element("div", *charts, class_="charts")]


def _panels(groups: Sequence[Group], is_single: bool) -> list[_Panel]:
    def longest(key: str) -> float:
        return max(float(run.series(key)[1].max(initial=0)) for group in groups for run in group.runs)

    size, per_size = ("millions", 1e6) if longest("tokens_seen") >= 1e6 else ("thousands", 1e3)
    unit, per_unit = time_unit(longest("speed/seconds"))
    titles = ("Over tokens", "Over time") if is_single else ("At equal tokens", "At equal time")
    return [
        _Panel(titles[0], "tokens_seen", f"tokens seen, {size}", per_size),
        _Panel(titles[1], "speed/seconds", f"training time without validation, {unit}", per_unit),
    ]


def _limits(
    validation: Sequence[Curve], training: Sequence[Curve], is_single: bool
) -> tuple[float, float] | None:
    """Ends of the vertical axis that let the end of the curves be read; None where nothing is finite.

    The steep start would take all of the height: it may leave the chart at its top; of groups, where small
    differences matter, also that of training losses before a late first validation.
    """
    heights, floors = [], []
    for measured, logged in zip(validation, training, strict=True):
        main = measured if len(measured.x) else logged
        for curve in (main, logged) if is_single else (main,):
            later = (curve.mean + curve.sd)[int(START_SHARE * len(curve.mean)) :]
            heights += later[np.isfinite(later)].tolist()
        lowest = np.concatenate([main.mean - main.sd, logged.mean])
        floors += lowest[np.isfinite(lowest)].tolist()
    return (min(floors), max(heights)) if heights and max(heights) > min(floors) else None


def _line(curve: Curve, colour: int, unit: float, is_main: bool) -> Line:
    spread = curve.sd if is_main and np.any(curve.sd) else None
    return Line(curve.x / unit, curve.mean, colour, spread, is_main)


def _legend(groups: Sequence[Group], is_single: bool, has_training: bool, is_cut: bool) -> Markup:
    if is_single:
        entries: list[object] = [
            chart.key(1, "validation"),
            chart.key(0, "training, smoothed", is_main=False),
        ]
    else:
        entries = [chart.key(number, group.name) for number, group in enumerate(groups)]
        kinds = ["thick: validation", "thin: training, smoothed"] if has_training else ["validation alone"]
        if any(len(group.runs) > 1 for group in groups):
            kinds.append("band: ± one standard deviation over seeds")
        entries.append("; ".join(kinds))
    if is_cut:
        entries.append("the steep start leaves the chart at its top")
    return element("div", *(element("span", entry) for entry in entries), class_="legend soft")
