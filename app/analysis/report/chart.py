"""Line charts as vector graphics that take the colours of the page around them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from app.analysis import drawable
from app.analysis.html import Markup, element, escaped

WIDTH, HEIGHT = 540, 330
LEFT, RIGHT, TOP, BOTTOM = 66, 16, 14, 44
EDGE = 4  # how far a mark on the frame may stand out of it
N_COLOURS = 6
DASHES = ("", "7 3", "2 3", "9 3 2 3")  # a further round of colours has another line
MAX_POINTS = 600
MAX_MARKS = 40
STYLE = """
svg.chart { width: 100%; max-width: 44rem; height: auto; } svg.chart text { fill: var(--soft); font-size: 11.5px; }
svg.chart text.title { fill: var(--ink); font-size: 12.5px; font-weight: 600; }
svg.chart .grid { stroke: var(--line); stroke-width: 1; } svg .line { fill: none; stroke-linejoin: round; }
@media (max-width: 34rem) { svg.chart text { font-size: 17px; } svg.chart text.title { font-size: 18px; } }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.4rem; margin: .3rem 0 .8rem; }
.name { display: inline-block; width: max-content; max-width: 16rem; }
svg.key { width: 1.7rem; height: .5rem; margin-right: .45rem; vertical-align: .08em; }
"""


class Line(NamedTuple):
    """One curve.

    Attributes:
        x: ``(n,)``.
        y: ``(n,)``; what is not finite is left out.
        colour: index of a series; the same one looks the same on all charts.
        spread: ``(n,)`` half width of the band around it; None without.
        is_main: drawn thick with its points; else thin.
    """

    x: np.ndarray
    y: np.ndarray
    colour: int
    spread: np.ndarray | None = None
    is_main: bool = True


class Scale:
    """Numbers to places along one axis.

    Args:
        low: smallest number.
        high: largest number, above ``low``.
        start: place of the smallest.
        end: place of the largest.
    """

    def __init__(self, low: float, high: float, start: float, end: float):
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, values: np.ndarray | float) -> np.ndarray:
        """Places of these numbers."""
        share = (np.asarray(values, dtype=np.float64) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, wanted: int) -> list[float]:
        """Round numbers inside, at most about so many."""
        extent = self.high - self.low
        power = 10.0 ** math.floor(math.log10(extent / wanted))
        step = next(digit * power for digit in (1, 2, 5, 10, 20) if extent / (digit * power) <= wanted)
        numbers = range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)
        return [number * step for number in numbers]


def line_chart(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    title: str = "",
    y_limits: tuple[float, float] | None = None,
) -> Markup:
    """Curves over one horizontal axis that begins at 0.

    Args:
        lines: may be empty or without a finite number; the chart then says so.
        x_label: with the unit.
        y_label: with the unit.
        title: over the chart.
        y_limits: ends of the vertical axis, curves leave the frame there; by default all numbers are inside.
    """
    drawn = [line for line in map(_cleaned, lines) if len(line.x)]
    if not drawn:
        return element("p", f"Nothing logged over {x_label}.", class_="soft")
    xs, ys = np.concatenate([line.x for line in drawn]), np.concatenate([line.y for line in drawn])
    low_x, high_x = min(0.0, float(xs.min())), float(xs.max())
    x = Scale(low_x, high_x if high_x > low_x else low_x + 1, LEFT, WIDTH - RIGHT)
    low, high = _limits(y_limits) or (float(ys.min()), float(ys.max()))
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    y = Scale(low - margin, high + margin, HEIGHT - BOTTOM, TOP + (16 if title else 0))
    curves = [_band(line, x, y) for line in drawn if line.spread is not None and (line.spread > 0).any()]
    curves += [_path(line, x, y) for line in sorted(drawn, key=lambda line: line.is_main)]
    label = f"{title + ': ' if title else ''}{y_label} over {x_label}"
    return element(
        "svg",
        *([element("text", title, x=LEFT, y=TOP, class_="title")] if title else []),
        _axis_x(x, y, x_label),
        _axis_y(x, y, y_label),
        _framed(curves, x, y),
        class_="chart",
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=label,
    )


def key(colour: int, label: object, is_main: bool = True) -> Markup:
    """An entry of a legend, with a piece of the line."""
    line = element("line", x1=0, x2=28, y1=4, y2=4, style=_look(colour, is_main))
    swatch = element("svg", line, class_="key", viewBox="0 0 28 8", aria_hidden="true")
    return Markup(f"{swatch}{escaped(label)}")


def _cleaned(line: Line) -> Line:
    """Finite points alone, and no more of them than a screen can tell apart."""
    x, y = drawable.numbers(line.x), drawable.numbers(line.y)
    index = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    if len(index) > MAX_POINTS:
        index = index[np.unique(np.linspace(0, len(index) - 1, MAX_POINTS).astype(int))]
    spread = None if line.spread is None else np.nan_to_num(drawable.numbers(line.spread[index]))
    return line._replace(x=x[index], y=y[index], spread=spread)


def _limits(asked: tuple[float, float] | None) -> tuple[float, float] | None:
    """Ends of an axis that have places, the lower first; None for any other."""
    if asked is None:
        return None
    low, high = drawable.numbers(asked).tolist()
    return (low, high) if low <= high else None


def _axis_x(x: Scale, y: Scale, label: str) -> Markup:
    parts = []
    for tick in x.ticks(7):
        at = f"{float(x(tick)):.1f}"
        parts.append(element("line", x1=at, x2=at, y1=f"{y.end:.0f}", y2=f"{y.start:.0f}", class_="grid"))
        parts.append(element("text", f"{tick:,.6g}", x=at, y=f"{y.start + 16:.0f}", text_anchor="middle"))
    middle = (x.start + x.end) / 2
    parts.append(element("text", label, x=middle, y=HEIGHT - 8, text_anchor="middle"))
    return element("g", *parts)


def _axis_y(x: Scale, y: Scale, label: str) -> Markup:
    parts = []
    for tick in y.ticks(7):
        at = float(y(tick))
        ends = {"x1": f"{x.start:.0f}", "x2": f"{x.end:.0f}", "y1": f"{at:.1f}", "y2": f"{at:.1f}"}
        parts.append(element("line", class_="grid", **ends))
        parts.append(
            element("text", f"{tick:,.5g}", x=f"{x.start - 6:.0f}", y=f"{at + 4:.1f}", text_anchor="end")
        )
    turned = f"translate(13 {(y.start + y.end) / 2:.0f}) rotate(-90)"
    parts.append(element("text", label, transform=turned, text_anchor="middle"))
    return element("g", *parts)


def _framed(curves: Sequence[Markup], x: Scale, y: Scale) -> Markup:
    """Curves without what is outside of the axes."""
    left, top = x.start - EDGE, y.end - EDGE
    width, height = x.end - x.start + 2 * EDGE, y.start - y.end + 2 * EDGE
    box = {"x": left, "y": top, "width": width, "height": height}
    return element("svg", *curves, viewBox=f"{left} {top} {width} {height}", **box)


def _look(colour: int, is_main: bool) -> str:
    dash = DASHES[colour // N_COLOURS % len(DASHES)]
    return (
        f"stroke: var(--s{colour % N_COLOURS}); stroke-width: {2 if is_main else 1}; "
        f"opacity: {1 if is_main else 0.65}" + (f"; stroke-dasharray: {dash}" if dash else "")
    )


def _path(line: Line, x: Scale, y: Scale) -> Markup:
    places = list(zip(x(line.x), y(line.y), strict=True))
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    parts = [element("polyline", points=points, class_="line", style=_look(line.colour, line.is_main))]
    if (line.is_main and len(places) <= MAX_MARKS) or len(places) == 1:
        fill = f"fill: var(--s{line.colour % N_COLOURS})"
        for (across, down), value in zip(places, line.y, strict=True):
            dot = {"cx": f"{across:.1f}", "cy": f"{down:.1f}", "r": 2.6, "style": fill}
            parts.append(element("circle", element("title", f"{value:.4f}"), **dot))
    return element("g", *parts)


def _band(line: Line, x: Scale, y: Scale) -> Markup:
    assert line.spread is not None
    up = zip(x(line.x), y(line.y + line.spread), strict=True)
    down = zip(x(line.x), y(line.y - line.spread), strict=True)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in [*up, *reversed(list(down))])
    return element("polygon", points=points, style=f"fill: var(--s{line.colour % N_COLOURS}); opacity: .18")
