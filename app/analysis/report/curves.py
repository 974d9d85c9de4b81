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
    largest,
    leaving,
)
from app.analysis.curves import time_unit
from app.analysis.html import Markup, element
from app.analysis.report import chart
from app.analysis.report.chart import Line, line_chart

#: title, key and label of the vertical axis
STEERING = (
    ("Learning rate", "train/lr", "learning rate"),
    ("Gradient norm", "train/grad_norm", "gradient norm before clipping"),
)


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
    charts, leave = [], ""
    for panel in _panels(groups, is_single):
        training = [curve_of(group.runs, panel.key, train_key, SMOOTHED_SHARE) for group in groups]
        validation = [curve_of(group.runs, panel.key, loss_key) for group in groups]
        if not any(np.isfinite(curve.mean).any() for curve in (*training, *validation)):
            continue
        lines, shown = [], {}
        for number, (coarse, fine) in enumerate(zip(validation, training, strict=True)):
            letter = groups[number].letter
            if has_training or not len(coarse.x):
                lines.append(_line(fine, number, panel.unit, is_main=False))
                shown["training" if is_single else f"{letter} (training)"] = [fine.mean]
            lines.append(_line(coarse, 1 if is_single else number, panel.unit, is_main=True))
            shown["validation" if is_single else letter] = [coarse.mean - coarse.sd, coarse.mean + coarse.sd]
        if comparison.baseline is not None:
            end = max(float(line.x.max(initial=0.0)) for line in lines)
            level = np.full(2, comparison.baseline)
            lines.append(Line(np.array([0.0, end]), level, len(groups) + 1, None, False))
        limits = _limits(validation, training, is_single, comparison.baseline)
        leave = leave or (leaving(shown, *limits) if limits else "")
        charts.append(element("div", line_chart(lines, panel.label, label, panel.title, limits)))
    if not charts:
        return [element("p", "Nothing logged yet.", class_="soft")]
    parts = [_legend(comparison, is_single, has_training, leave), element("div", *charts, class_="charts")]
    return [*parts, *_steering(groups[0])] if is_single else parts


def _steering(group: Group) -> list[Markup]:
    """What steers the training of one run and what comes of it: learning rate and gradient norm over steps."""
    charts = []
    for title, key, label in STEERING:
        curve = curve_of(group.runs, "step", key)
        if np.isfinite(curve.mean).any():
            heights = curve.mean[np.isfinite(curve.mean)]
            peak = float(np.quantile(heights, 0.99)) if key == "train/grad_norm" else float(heights.max())
            limits = (0.0, peak) if peak > 0 else None
            line = Line(curve.x, curve.mean, 0, None, len(curve.x) <= 2)
            over = f"; largest {heights.max():.3g}" if heights.max() > peak else ""
            charts.append(
                element("div", line_chart([line], "optimizer step", label, f"{title}{over}", limits))
            )
    return [element("div", *charts, class_="charts")] if charts else []


def _panels(groups: Sequence[Group], is_single: bool) -> list[_Panel]:
    def longest(key: str) -> float:
        return max(largest(run.series(key)[1]) for group in groups for run in group.runs)

    size, per_size = ("millions", 1e6) if longest("tokens_seen") >= 1e6 else ("thousands", 1e3)
    unit, per_unit = time_unit(longest("speed/seconds"))
    titles = ("Over tokens", "Over time") if is_single else ("At equal tokens", "At equal time")
    return [
        _Panel(titles[0], "tokens_seen", f"tokens seen, {size}", per_size),
        _Panel(titles[1], "speed/seconds", f"training time without validation, {unit}", per_unit),
    ]


def _limits(
    validation: Sequence[Curve], training: Sequence[Curve], is_single: bool, baseline: float | None
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
    floors += [] if baseline is None else [baseline]
    return (min(floors), max(heights)) if heights and max(heights) > min(floors) else None


def _line(curve: Curve, colour: int, unit: float, is_main: bool) -> Line:
    spread = curve.sd if is_main and np.any(curve.sd > 0) else None
    return Line(curve.x / unit, curve.mean, colour, spread, is_main)


def _legend(comparison: Comparison, is_single: bool, has_training: bool, leave: str) -> Markup:
    groups = comparison.groups
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
    if comparison.baseline is not None:
        counts = f"counting alone, {comparison.baseline:.3f}"
        entries.append(chart.key(len(groups) + 1, counts, is_main=False))
    if leave:
        entries.append(leave)
    return element("div", *(element("span", entry) for entry in entries), class_="legend soft")
