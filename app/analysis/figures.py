"""Matrices with labels become figures: depth over time, one look for all of them.

The paper is light and opaque, so that a figure reads the same on a light and on a dark page.
"""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from app.analysis import drawable
from app.analysis.colours import Scale, scale_of, short, shown_range
from app.analysis.depth_time import SEPARATOR, DepthTime, Rows
from app.analysis.figure_numbers import chunk, panel
from app.analysis.style import COLOURS, canvas, save

#: panels side by side; a quantity with more entries than so many panels is folded into rows
MAX_PANELS, PANELS_PER_LINE = 12, 3
#: rows that are labelled one by one, by number or by name
MAX_NUMBERED_ROWS, MAX_NAMED_ROWS = 18, 64
#: characters of a row's name, of a unit, of a panel's title per inch, and of a heading
MAX_ROW_NAME, MAX_UNIT, TITLE_PER_INCH, MAX_SUBJECT, MAX_MEANING = 44, 24, 16, 52, 160
MAX_STAMP = 72
HEAD_LINE, PER_HEAD_LINE = 0.19, 84  # inches, characters
ON_TARGET = "on target"
#: what numbers that are none look like on a heat-map
NO_NUMBER = "#dddddd"
UNITS = {"share": "share", "count": "count per step", "gain": "gain", "threshold": "threshold", "level": ""}

SOFT = "#555555"
# inches
LEFT, RIGHT, TOP, BOTTOM = 0.72, 1.05, 0.46, 0.64
GAP, LINE_GAP, WIDTH = 0.2, 0.62, 6.2
BAR_ROOM = 0.82  # between panels, for a bar and its numbers


class Panel(NamedTuple):
    """One heat-map.

    Attributes:
        title: above it.
        matrix: ``(rows, columns)``.
        unit: of the numbers.
        neutral: number at which colours part; else None.
        from_zero: whether colours begin at zero.
        white: what white means; empty for the neutral number itself.
        maximum: the most that a number can be.
        entries: a name for each row of a layer.
    """

    title: str
    matrix: np.ndarray
    unit: str = ""
    neutral: float | None = None
    from_zero: bool = False
    white: str = ""
    maximum: float | None = None
    entries: tuple[str, ...] = ("",)

    def is_like(self, other: "Panel") -> bool:
        """Whether both share one scale of colours."""
        ours = (self.unit, self.neutral, self.from_zero, self.maximum)
        return self.unit != "" and ours == (other.unit, other.neutral, other.from_zero, other.maximum)


def draw_quantity(rows: Rows, kept: DepthTime, stamp: str = "") -> bytes:
    """One quantity as a PNG: lines with bands for thresholds, heat-maps of depth over time for all else.

    Counts over a last axis of alternatives, such as banks, become shares of their sum, against even ones.

    Args:
        rows: what the numbers are.
        kept: the numbers, at least one column.
        stamp: whose figure it is and of when; in small letters below it.
    """
    values = drawable.numbers(kept.values).reshape(len(rows.layers), len(rows.entries), -1)
    if rows.kind == "threshold":
        return _draw_lines(rows, values, kept.edges, stamp)
    if rows.kind == "count" and rows.n_inner > 1:
        rows, values = _against_even(rows, values)
    n_inner = rows.n_inner
    n_panels = len(rows.entries) // n_inner
    if n_panels > MAX_PANELS:
        n_panels, n_inner = 1, len(rows.entries)
    targets = None
    if rows.target is not None and rows.kind == "share":
        targets = np.broadcast_to(drawable.numbers(rows.target), values.shape[:2])
    panels = []
    for number in range(n_panels):
        own = slice(number * n_inner, (number + 1) * n_inner)
        of_panel = Panel(
            _panel_name(rows, number * n_inner) if n_panels > 1 or n_inner == 1 else "",
            values[:, own].reshape(-1, values.shape[-1]),
            rows.unit or UNITS[rows.kind],
            1.0 if rows.kind == "gain" else drawable.number(rows.neutral),
            rows.kind in ("share", "count"),
            "no change" if rows.kind == "gain" else "",
            drawable.number(rows.maximum),
            _inner_names(rows, n_inner, number),
        )
        if targets is not None and np.ptp(targets[:, own]) < 1e-6:
            target = float(targets[0, number * n_inner])
            even = rows.n_inner > 1 and math.isclose(target, 1 / rows.n_inner, rel_tol=1e-5)
            of_panel = of_panel._replace(
                neutral=target, white=f"even, {short(target)}" if even else ON_TARGET
            )
        panels.append(of_panel)
    subject = rows.name.replace("_", " ") + (f" ({rows.note})" if rows.note else "")
    inner = f"rows of a layer: its {n_inner} {_plural(rows.inner)}, 0 lowest" if n_inner > 1 else ""
    return _draw_maps(subject, rows.meaning, panels, rows.layers, kept.edges, n_inner, inner, stamp)


def draw_group(
    name: str, group: Mapping[str, tuple[Rows, DepthTime]], meaning: str = "", stamp: str = ""
) -> bytes:
    """Several quantities of one group as a PNG, a heat-map each; those of one unit have one scale.

    Args:
        name: of the group.
        group: title to what the numbers are, and the numbers; one number per layer, the same layers and steps.
        meaning: of all of them together.
        stamp: as of :func:`draw_quantity`.
    """
    panels = []
    for title, (rows, kept) in group.items():
        named = rows.meaning or title.replace("_", " ")
        values = drawable.numbers(kept.values)
        panels.append(Panel(named, values, rows.unit, drawable.number(rows.neutral)))
    rows, kept = next(iter(group.values()))
    return _draw_maps(name.replace("_", " "), meaning, panels, rows.layers, kept.edges, 1, "", stamp)


def _against_even(rows: Rows, values: np.ndarray) -> tuple[Rows, np.ndarray]:
    """Counts as shares of what the alternatives of the last axis have together; no number where that is nothing."""
    apart = values.reshape(len(rows.layers), -1, rows.n_inner, values.shape[-1])
    total = apart.sum(axis=2, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.where(total > 0, apart / total, np.nan)
    even = ((1 / rows.n_inner,) * len(rows.entries),) * len(rows.layers)
    unit = f"share of its {_plural(rows.inner)}"
    return replace(rows, kind="share", target=even, unit=unit), shares.reshape(values.shape)


def _plural(axis: str) -> str:
    return f"{axis}s" if axis else "entries"


def _inner_names(rows: Rows, n_inner: int, number: int) -> tuple[str, ...]:
    """A name for each row of a layer in a panel."""
    if n_inner == 1:
        return ("",)
    own = rows.entries[number * n_inner : (number + 1) * n_inner]
    if n_inner == len(rows.entries):
        return own
    return tuple(f"{rows.inner} {entry.rpartition(SEPARATOR)[2]}".strip() for entry in own)


def _panel_name(rows: Rows, entry: int) -> str:
    name = rows.entries[entry]
    return name.rpartition(SEPARATOR)[0] if rows.n_inner > 1 else name


def _draw_lines(rows: Rows, values: np.ndarray, edges: np.ndarray, stamp: str) -> bytes:
    """Mean over layers as a line, smallest to largest layer as a band."""
    steps = edges[1:]
    notes = ["band: smallest to largest layer" if len(rows.layers) > 1 else ""]
    matrix = values.reshape(-1, values.shape[-1])
    known = matrix[np.isfinite(matrix)]
    least, most = shown_range([matrix])
    is_cut = len(known) > 0 and (least > known.min() or most < known.max())
    if is_cut:
        notes.append(f"what passes leaves the picture: {short(known.min())} to {short(known.max())}")
    if n_lost := matrix.size - len(known):
        notes.append(f"{n_lost:,} of {matrix.size:,} values are no finite numbers")
    under = _under(rows.meaning, "; ".join(filter(None, notes)))
    top = TOP + HEAD_LINE * len(under)
    with canvas(WIDTH, 3.6) as figure:
        axes = _axes(figure, LEFT, BOTTOM, WIDTH - LEFT - 1.75, 3.6 - top - BOTTOM)
        for number, (entry, of_layers) in enumerate(
            zip(rows.entries, values.transpose(1, 0, 2), strict=True)
        ):
            colour = COLOURS[number % len(COLOURS)]
            # In double precision, where the mean of equal numbers is that number, and over those that are numbers.
            there = np.ma.masked_invalid(of_layers)
            mean, low, high = (found.filled(np.nan) for found in (there.mean(0), there.min(0), there.max(0)))
            if len(steps) == 1:  # from end to end: a distance to the mean could be rounded below zero
                axes.plot([steps[0], steps[0]], [low[0], high[0]], color=colour, marker="_")
            axes.fill_between(steps, low, high, color=colour, alpha=0.22, linewidth=0)
            label = drawable.text(entry or rows.name, MAX_ROW_NAME)
            axes.plot(
                steps,
                mean,
                color=colour,
                marker="o" if len(steps) == 1 else None,
                label=f"{label}  {short(mean[-1]) if np.isfinite(mean[-1]) else '–'}",
            )
            if rows.target is not None:
                targets = np.broadcast_to(drawable.numbers(rows.target), values.shape[:2])[:, number]
                if np.isfinite(targets).all():
                    axes.axhline(targets.mean(), color=colour, linestyle=":", linewidth=1)
        axes.grid(color="#dddddd", linewidth=0.6)
        unit = drawable.text(rows.unit or "threshold", MAX_UNIT)
        axes.set(xlabel="optimizer step", ylabel=unit, xlim=(0, steps[-1] or 1))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.legend(
            loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, title="mean of layers, now"
        )
        if is_cut:
            axes.set_ylim(least - 0.08 * (most - least), most + 0.08 * (most - least))
        _head(figure, rows.name.replace("_", " "), under)
        marks, labels = (least, (least + most) / 2, most), (short(least), "", short(most))
        of_all = Scale(marks, labels, None, "", None)
        numbers = [
            panel(entry or rows.name, unit, ("",), values[:, number], of_all)
            for number, entry in enumerate(rows.entries)
        ]
        about = _about(
            "lines",
            rows.name.replace("_", " "),
            rows.meaning,
            "; ".join(notes[1:]),
            rows.layers,
            edges,
            stamp,
        )
        return _png(figure, about | {"panels": numbers})


def _draw_maps(
    subject: str,
    meaning: str,
    panels: Sequence[Panel],
    layers: tuple[str, ...],
    edges: np.ndarray,
    n_inner: int,
    inner: str,
    stamp: str,
) -> bytes:
    # One bar for all panels, or one beside each; panels of one unit have one scale.
    is_alike = len(panels) == 1 or all(map(panels[0].is_like, panels))
    scales = [
        scale_of([o.matrix for o in panels if o is p or p.is_like(o)], p.neutral, p.from_zero, p.maximum)
        for p in panels
    ]
    n_rows = panels[0].matrix.shape[0]
    per_line = min(len(panels), PANELS_PER_LINE if is_alike else 2)
    if len(panels) == 4:
        per_line = 2
    n_lines = -(-len(panels) // per_line)
    is_numbered = all(layer.isdecimal() for layer in layers)
    layers = tuple(drawable.text(layer, MAX_ROW_NAME) for layer in layers)
    gap = GAP if is_alike else BAR_ROOM
    margin = LEFT + 0.068 * max(max(map(len, layers)) - 3, 0)
    across = WIDTH + margin - LEFT
    width = (WIDTH - LEFT - (RIGHT if is_alike else gap) - gap * (per_line - 1)) / per_line
    height = _height(n_rows, is_numbered)
    is_whole = all(np.isfinite(p.matrix).all() for p in panels)
    notes = (_white(panels, scales), "" if is_whole else "grey: no number", inner)
    under = _under(meaning, "; ".join(filter(None, notes)))
    top = TOP + HEAD_LINE * len(under) + (0.22 if any(p.title for p in panels) else 0.0)
    up = top + n_lines * (height + LINE_GAP) - LINE_GAP + BOTTOM
    with canvas(across, up) as figure:
        # Axes are what costs time: the panels of a line share them, side by side.
        for line in range(n_lines):
            own = panels[line * per_line : (line + 1) * per_line]
            bottom = up - top - height - line * (height + LINE_GAP)
            span = len(own) * (width + gap) - gap
            axes = _axes(figure, margin, bottom, span, height)
            to_inches = width / edges[-1]
            ticks = _step_ticks(edges, width)
            places: list[float] = []
            for number, of_panel in enumerate(own):
                start = number * (width + gap)
                scale = scales[line * per_line + number]
                image = _draw_map(axes, of_panel.matrix, scale, start + edges * to_inches, n_inner)
                places += [start + tick * to_inches for tick in ticks]
                title = of_panel.title
                if not is_alike:
                    _bar_beside(axes, scale, start + width, n_rows)
                    title += f", {of_panel.unit}" if of_panel.unit else ""
                    title += f", target {short(of_panel.neutral or 0)}" if of_panel.white == ON_TARGET else ""
                title = drawable.text(title, max(int(TITLE_PER_INCH * width), 12))
                axes.text(start, n_rows * (1 + 0.06 / height), title, fontsize=10, va="bottom")
            axes.set(xlim=(0, span), ylim=(0, n_rows))
            axes.set_xticks(places, [f"{tick:,.0f}" for tick in ticks] * len(own))
            axes.tick_params(axis="x", labelsize=9)
            if len(own) > 1:  # the label at the end of one panel would run into the next one's first
                for number, label in enumerate(axes.get_xticklabels()):
                    label.set_horizontalalignment(_align(number % len(ticks), len(ticks)))
            if line == n_lines - 1:
                axes.set_xlabel("optimizer step")
            for spine in axes.spines.values():
                spine.set_visible(False)
            _layer_ticks(axes, layers, n_inner)
            if is_alike:
                bar = figure.colorbar(image, cax=_axes(figure, margin + span + 0.1, bottom, 0.13, height))
                bar.outline.set_visible(False)
                bar.set_ticks(scales[0].marks, labels=scales[0].labels)
                bar.ax.tick_params(labelsize=8, length=2)
                bar.set_label(drawable.text(panels[0].unit, MAX_UNIT), fontsize=9)
        _head(figure, subject, under)
        numbers = [
            panel(p.title, p.unit, p.entries, p.matrix, scale, _said(p, scale))
            for p, scale in zip(panels, scales, strict=True)
        ]
        about = _about("maps", subject, meaning, inner, layers, edges, stamp)
        return _png(figure, about | {"panels": numbers})


def _about(
    kind: str, subject: str, meaning: str, inner: str, layers: tuple[str, ...], edges: np.ndarray, stamp: str
) -> dict[str, Any]:
    """What a figure says of all of its panels, as plain values."""
    return {
        "kind": kind, "subject": subject, "meaning": meaning, "inner": inner, "layers": list(layers),
        "steps": edges.tolist(), "stamp": stamp,
    }  # fmt: skip


def _draw_map(axes: Any, matrix: np.ndarray, scale: Scale, edges: np.ndarray, n_inner: int) -> Any:
    """The colours of one panel between edges in inches, a line between layers of several rows."""
    import matplotlib

    n_rows = len(matrix)
    image = axes.pcolormesh(
        edges,
        np.arange(n_rows + 1),
        matrix,
        cmap=matplotlib.colormaps[scale.colours].with_extremes(bad=NO_NUMBER),
        norm=scale.norm,
    )
    left, right = edges[0], edges[-1]
    for at in range(n_inner, n_rows, n_inner) if n_inner > 1 else ():
        axes.plot([left, right], [at, at], color="white", linewidth=1.2)
    if scale.neutral is not None:  # white at the edge is not yet paper
        frame = [left, right, right, left, left], [0, 0, n_rows, n_rows, 0]
        axes.plot(*frame, color="#999999", linewidth=0.6, clip_on=False)
    return image


def _bar_beside(axes: Any, scale: Scale, right: float, n_rows: int) -> None:
    """The colours of one panel, at its right in the axes that it shares; places in inches and rows."""
    low, middle, high = scale.labels
    left = right + 0.06
    shades = np.linspace(0, 1, 64)[:, None]
    axes.pcolormesh([left, left + 0.1], np.linspace(0, n_rows, 65), shades, cmap=scale.colours, clip_on=False)
    named = [(0.0, low, "bottom"), (1.0, high, "top")]
    if scale.neutral is not None:
        named.append((0.5, middle, "center"))
    for at, label, align in named:
        axes.text(left + 0.14, at * n_rows, label, fontsize=8, va=align)


def _said(of_panel: Panel, scale: Scale) -> str:
    """What white means in one panel, with its number."""
    number = short(scale.neutral or 0)
    return f"{ON_TARGET}, {number}" if of_panel.white == ON_TARGET else of_panel.white or number


def _white(panels: Sequence[Panel], scales: Sequence[Scale]) -> str:
    """What white means; empty where it means nothing, or not the same in every panel."""
    meanings = {
        of_panel.white or short(scale.neutral)
        for of_panel, scale in zip(panels, scales, strict=True)
        if scale.neutral is not None
    }
    return f"white: {meanings.pop()}" if len(meanings) == 1 else ""


def _height(n_rows: int, is_numbered: bool) -> float:
    """Inches of a panel: rows of a deep network are thinner, rows with names are not."""
    if not is_numbered:
        return float(np.clip(0.16 * n_rows, 1.1, 9.0))
    return float(np.clip(0.2 * min(n_rows, 12) + 0.06 * max(n_rows - 12, 0), 1.1, 5.5))


def _step_ticks(edges: np.ndarray, width: float) -> list[float]:
    """Steps at which columns begin or end, close to round ones, so many as have room in this many inches.

    The first and the last one are among them.
    """
    last = float(edges[-1])
    wanted = max(int(width / 0.75), 2)
    power = 10.0 ** max(math.floor(math.log10(max(last, 1.0) / wanted)), 0)
    size = next(leading * power for leading in (1, 2, 5, 10, 20) if last / (leading * power) <= wanted)
    round_ones = np.arange(0, last + 1e-9, size)
    nearest = edges[np.abs(edges[None] - round_ones[:, None]).argmin(axis=1)]
    room = 0.6 * last / max(width, 0.6)  # of a label of six figures
    return [
        *sorted({float(tick) for tick in nearest if last - tick > room} | {0.0}),
        *([last] if last else []),
    ]


def _align(number: int, n_ticks: int) -> str:
    return "left" if number == 0 else "right" if number == n_ticks - 1 else "center"


def _layer_ticks(axes: Any, layers: tuple[str, ...], n_inner: int) -> None:
    """Numbers or names of layers in the middle of their rows."""
    is_numbered = all(layer.isdecimal() for layer in layers)
    every = -(-len(layers) // (MAX_NUMBERED_ROWS if is_numbered else MAX_NAMED_ROWS))
    shown = range(0, len(layers), every)
    axes.set_yticks([(layer + 0.5) * n_inner for layer in shown], [layers[layer] for layer in shown])
    axes.tick_params(axis="y", length=0, labelsize=10 if is_numbered else 7)
    if is_numbered:
        axes.set_ylabel("layer")


def _axes(figure: Any, left: float, bottom: float, width: float, height: float) -> Any:
    """Axes at a place in inches."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def _under(meaning: str, note: str) -> list[str]:
    """What stands under a heading: what the numbers say, and how to read them."""
    texts = (drawable.text(text, MAX_MEANING) for text in (meaning, note) if text)
    return [line for text in texts for line in textwrap.wrap(text, PER_HEAD_LINE)]


def _head(figure: Any, subject: str, under: Sequence[str]) -> None:
    across, up = figure.get_size_inches()
    left = 0.14 / across
    subject = drawable.text(subject, MAX_SUBJECT)
    figure.text(left, 1 - 0.27 / up, subject, fontsize=12, fontweight="bold", va="center")
    for number, line in enumerate(under):
        figure.text(left, 1 - (0.49 + HEAD_LINE * number) / up, line, fontsize=9, va="center", color=SOFT)


def _png(figure: Any, numbers: dict[str, Any]) -> bytes:
    across, up = figure.get_size_inches()
    stamp = drawable.text(numbers["stamp"], MAX_STAMP)
    figure.text(0.14 / across, 0.1 / up, stamp, fontsize=7, va="center", color=SOFT)
    written = io.BytesIO()
    save(figure, written, chunk(numbers))
    return written.getvalue()
