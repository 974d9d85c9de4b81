"""Line charts as vector graphics that take the colours of the page around them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from app.analysis.html import Markup, element, escaped

WIDTH, HEIGHT = 540, 330
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 14, 44
N_COLOURS = 6
MAX_POINTS = 600
STYLE = """
svg.chart { width: 100%; height: auto; } svg.chart text { fill: var(--soft); font-size: 11.5px; }
svg.chart .grid { stroke: var(--line); stroke-width: 1; } svg.chart .line { fill: none; stroke-linejoin: round; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); gap: 1rem; }
.key { display: inline-block; width: 1.4rem; height: .25rem; border-radius: 2px; vertical-align: .22em;
  margin-right: .4rem; }
"""


class Line(NamedTuple):
    """One curve.

    Attributes:
        x: ``(n,)``.
        y: ``(n,)``; what is not finite is left out.
        colour: index of a series; the same one has the same colour on all charts.
        spread: ``(n,)`` half width of the band around it; None without.
        is_main: drawn thick with its points; else thin.
        dash: pattern of the stroke; empty for a whole line.
    """

    x: np.ndarray
    y: np.ndarray
    colour: int
    spread: np.ndarray | None = None
    is_main: bool = True
    dash: str = ""


class Scale:
    """Numbers to places along one axis, linear or logarithmic.

    Args:
        low: smallest number.
        high: largest number, above ``low``.
        start: place of the smallest.
        end: place of the largest.
        logarithmic: needs ``low`` > 0.
    """

    def __init__(self, low: float, high: float, start: float, end: float, logarithmic: bool):
        self.low, self.high, self.start, self.end = low, high, start, end
        self.logarithmic = logarithmic

    def __call__(self, values: np.ndarray | float) -> np.ndarray:
        """Places of these numbers."""
        numbers = np.asarray(values, dtype=np.float64)
        if self.logarithmic:
            share = np.log(numbers / self.low) / math.log(self.high / self.low)
        else:
            share = (numbers - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, wanted: int) -> list[float]:
        """Round numbers inside, about so many."""
        if self.logarithmic and self.high / self.low >= 30:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            leading = (1, 2, 5) if self.high / self.low < 2000 else (1,)
            found = [digit * 10.0**power for power in powers for digit in leading]
        else:
            step = next(
                size
                for power in range(-12, 16)
                for size in (10.0**power, 2 * 10.0**power, 5 * 10.0**power)
                if (self.high - self.low) / size <= wanted
            )
            found = list(np.arange(math.ceil(self.low / step), math.floor(self.high / step) + 1) * step)
        return [tick for tick in found if self.low <= tick * (1 + 1e-9) and tick <= self.high * (1 + 1e-9)]


def line_chart(lines: Sequence[Line], x_label: str, y_label: str, log_x: bool = False) -> Markup:
    """Curves over one horizontal axis; the vertical one is logarithmic where all numbers are positive.

    Args:
        lines: may be empty or without a finite number; the chart then says so.
        x_label: with the unit.
        y_label: with the unit.
        log_x: whether the horizontal axis is logarithmic, from the smallest positive x on.
    """
    drawn = [_cleaned(line, log_x) for line in lines]
    drawn = [line for line in drawn if len(line.x)]
    if not drawn:
        return element("p", f"Nothing logged over {x_label}.", class_="soft")
    xs, ys = np.concatenate([line.x for line in drawn]), np.concatenate([line.y for line in drawn])
    low_x = float(xs.min()) if log_x else 0.0
    x = Scale(low_x, max(float(xs.max()), low_x * 1.01 + 1e-9), LEFT, WIDTH - RIGHT, log_x)
    low_y, high_y = float(ys.min()), float(ys.max())
    margin = 0.04 * (high_y - low_y) or 0.05 * abs(high_y) or 0.5
    is_log = low_y > 0
    low_y = low_y / (1 + margin / high_y) if is_log else low_y - margin
    y = Scale(low_y, high_y + margin, HEIGHT - BOTTOM, TOP, is_log)
    parts = [_axis_x(x, x_label), _axis_y(y, y_label)]
    parts += [_band(line, x, y) for line in drawn if line.spread is not None and line.spread.any()]
    parts += [_path(line, x, y) for line in sorted(drawn, key=lambda line: line.is_main)]
    label = f"{y_label} over {x_label}"
    return element(
        "svg", *parts, class_="chart", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label
    )


def _cleaned(line: Line, log_x: bool) -> Line:
    """Finite points alone, and no more of them than a screen can tell apart."""
    keep = np.isfinite(line.x) & np.isfinite(line.y) & ((line.x > 0) | (not log_x))
    index = np.flatnonzero(keep)
    if len(index) > MAX_POINTS:
        index = index[np.unique(np.linspace(0, len(index) - 1, MAX_POINTS).astype(int))]
    spread = None if line.spread is None else line.spread[index]
    return line._replace(x=line.x[index], y=line.y[index], spread=spread)


def _axis_x(scale: Scale, label: str) -> Markup:
    bottom = HEIGHT - BOTTOM
    parts = []
    for tick in scale.ticks(7):
        at = f"{float(scale(tick)):.1f}"
        parts.append(element("line", x1=at, x2=at, y1=TOP, y2=bottom, class_="grid"))
        parts.append(element("text", f"{tick:,.10g}", x=at, y=bottom + 16, text_anchor="middle"))
    middle = (scale.start + scale.end) / 2
    parts.append(element("text", label, x=middle, y=HEIGHT - 8, text_anchor="middle"))
    return element("g", *parts)


def _axis_y(scale: Scale, label: str) -> Markup:
    parts = []
    for tick in scale.ticks(6):
        at = float(scale(tick))
        parts.append(
            element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=f"{at:.1f}", y2=f"{at:.1f}", class_="grid")
        )
        parts.append(element("text", f"{tick:,.6g}", x=LEFT - 6, y=f"{at + 4:.1f}", text_anchor="end"))
    middle = (scale.start + scale.end) / 2
    turned = f"translate(13 {middle:.0f}) rotate(-90)"
    parts.append(element("text", label, transform=turned, text_anchor="middle"))
    return element("g", *parts)


def _path(line: Line, x: Scale, y: Scale) -> Markup:
    colour = f"var(--s{line.colour % N_COLOURS})"
    places = list(zip(x(line.x), y(line.y), strict=True))
    look = (
        f"stroke: {colour}; stroke-width: {2 if line.is_main else 1}; opacity: {1 if line.is_main else 0.6};"
    )
    if line.dash:
        look += f" stroke-dasharray: {line.dash};"
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    parts = [element("polyline", points=points, class_="line", style=look)]
    if line.is_main and len(places) <= 40:
        for (across, down), value in zip(places, line.y, strict=True):
            said = element("title", f"{value:.4g}")
            dot = {"cx": f"{across:.1f}", "cy": f"{down:.1f}", "r": 2.6, "style": f"fill: {colour}"}
            parts.append(element("circle", said, **dot))
    return element("g", *parts)


def _band(line: Line, x: Scale, y: Scale) -> Markup:
    assert line.spread is not None
    low = np.maximum(line.y - line.spread, y.low)
    up = list(zip(x(line.x), y(line.y + line.spread), strict=True))
    down = list(zip(x(line.x), y(low), strict=True))
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in [*up, *reversed(down)])
    return element("polygon", points=points, style=f"fill: var(--s{line.colour % N_COLOURS}); opacity: .18")


def key(colour: int, label: object) -> Markup:
    """An entry of a legend."""
    swatch = element("span", class_="key", style=f"background: var(--s{colour % N_COLOURS})")
    return Markup(f"{swatch}{escaped(label)}")
