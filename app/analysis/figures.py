"""Matrices with labels become figures: depth over time, one look for all of them.

The paper is light and opaque, so that a figure reads the same on a light and on a dark page.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from app.analysis.depth_time import SEPARATOR, DepthTime, Rows
from app.analysis.style import COLOURS, canvas

#: panels side by side; a quantity with more entries than so many panels is folded into rows
MAX_PANELS, PANELS_PER_LINE = 12, 5
#: rows that are labelled one by one, by number or by name
MAX_NUMBERED_ROWS, MAX_NAMED_ROWS = 18, 64
UNITS = {"share": "share", "count": "count per step", "gain": "gain", "threshold": "threshold", "level": ""}

SOFT = "#555555"
# inches
LEFT, RIGHT, TOP, BOTTOM = 0.72, 1.15, 0.72, 0.55
GAP, LINE_GAP, WIDTH = 0.2, 0.5, 9.4


class Panel(NamedTuple):
    """One heat-map.

    Attributes:
        title: above it.
        matrix: ``(rows, columns)``.
        target: what the rows are held against, where that is one number; else None.
        unit: of the numbers.
        diverges: whether colours part at the target.
    """

    title: str
    matrix: np.ndarray
    target: float | None
    unit: str
    diverges: bool = False


def draw_quantity(rows: Rows, kept: DepthTime) -> bytes:
    """One quantity as a PNG: lines with bands for thresholds, heat-maps of depth over time for all else.

    Args:
        rows: what the numbers are.
        kept: the numbers, at least one column.
    """
    values = kept.values.reshape(len(rows.layers), len(rows.entries), -1)  # (layers, entries, columns)
    if rows.kind == "threshold":
        return _draw_lines(rows, values, kept.edges)
    n_inner = rows.n_inner
    n_panels = len(rows.entries) // n_inner
    if n_panels > MAX_PANELS:
        n_panels, n_inner = 1, len(rows.entries)
    targets = None
    if rows.target is not None:
        targets = np.broadcast_to(np.asarray(rows.target), values.shape[:2])
    panels = []
    for number in range(n_panels):
        own = slice(number * n_inner, (number + 1) * n_inner)
        target = None
        if targets is not None and np.ptp(targets[:, own]) < 1e-6:
            target = float(targets[0, number * n_inner])
        name = rows.entries[number * n_inner]
        if n_panels == 1 and n_inner > 1:
            name = ""
        elif rows.n_inner > 1:
            name = name.rpartition(SEPARATOR)[0]
        matrix = values[:, own].reshape(-1, values.shape[-1])
        panels.append(Panel(name, matrix, target, rows.unit or UNITS[rows.kind], rows.kind == "share"))
    if rows.kind == "gain":
        panels = [panel._replace(target=1.0, diverges=True) for panel in panels]
    inner = rows.inner or "entry"
    subject = rows.name.replace("_", " ") + (f" ({rows.note})" if rows.note else "")
    return _draw_maps(subject, panels, rows.layers, kept.edges, n_inner, inner)


def draw_group(name: str, group: Mapping[str, tuple[Rows, DepthTime]]) -> bytes:
    """Several quantities of one group as a PNG, a heat-map each.

    Args:
        name: of the group.
        group: title to what the numbers are, and the numbers; one number per layer, the same layers and steps.
    """
    panels = [
        Panel(title.replace("_", " "), kept.values, None, rows.unit) for title, (rows, kept) in group.items()
    ]
    rows, kept = next(iter(group.values()))
    return _draw_maps(name.replace("_", " "), panels, rows.layers, kept.edges, 1, "")


def _draw_lines(rows: Rows, values: np.ndarray, edges: np.ndarray) -> bytes:
    """Mean over layers as a line, smallest to largest layer as a band."""
    steps = edges[1:]
    with canvas(WIDTH, 3.6) as figure:
        axes = _axes(figure, 0.72, BOTTOM, WIDTH - 0.72 - 2.1, 3.6 - TOP - BOTTOM)
        for number, (entry, of_layers) in enumerate(
            zip(rows.entries, values.transpose(1, 0, 2), strict=True)
        ):
            colour = COLOURS[number % len(COLOURS)]
            mean = of_layers.mean(axis=0)
            low, high = of_layers.min(axis=0), of_layers.max(axis=0)
            if len(steps) == 1:
                axes.errorbar(steps, mean, [mean - low, high - mean], color=colour, marker="o", capsize=3)
            axes.fill_between(steps, low, high, color=colour, alpha=0.22, linewidth=0)
            label = f"{entry or rows.name}  {_short(mean[-1])}"
            axes.plot(steps, mean, color=colour, label=label)
            if rows.target is not None:
                target = np.broadcast_to(np.asarray(rows.target), values.shape[:2])[:, number].mean()
                axes.axhline(target, color=colour, linestyle=":", linewidth=1)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set(xlabel="optimizer step", ylabel=rows.unit or "threshold", xlim=(0, steps[-1] or 1))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.legend(
            loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, title="mean of layers, now"
        )
        many = len(rows.layers) > 1
        _head(figure, rows.name.replace("_", " "), "band: smallest to largest layer" if many else "")
        return _png(figure)


def _draw_maps(
    subject: str,
    panels: Sequence[Panel],
    layers: tuple[str, ...],
    edges: np.ndarray,
    n_inner: int,
    inner: str,
) -> bytes:
    is_alike = len({(panel.target, panel.unit, panel.diverges) for panel in panels}) == 1 and panels[0].unit
    n_rows = panels[0].matrix.shape[0]
    common = _scale([panel.matrix for panel in panels], panels[0]) if is_alike else None
    per_line = min(len(panels), PANELS_PER_LINE if is_alike else 3)
    if not is_alike and len(panels) == 4:
        per_line = 2
    n_lines = -(-len(panels) // per_line)
    is_numbered = all(layer.isdecimal() for layer in layers)
    margin = LEFT + 0.068 * max(max(map(len, layers)) - 3, 0)
    width = (WIDTH - margin - RIGHT - GAP * (per_line - 1)) / per_line
    height = float(np.clip((0.2 if is_numbered else 0.16) * n_rows, 1.1, 5.5 if is_numbered else 9.0))
    up = TOP + n_lines * (height + LINE_GAP) - LINE_GAP + BOTTOM
    with canvas(WIDTH, up) as figure:
        # Axes are what costs time: the panels of a line share them, side by side.
        for line in range(n_lines):
            own = panels[line * per_line : (line + 1) * per_line]
            is_lowest = line == n_lines - 1
            bottom = up - TOP - height - line * (height + LINE_GAP)
            span = len(own) * (width + GAP) - GAP
            axes = _axes(figure, margin, bottom, span, height)
            to_inches = width / edges[-1]
            ticks = _step_ticks(edges[-1], width)
            if len(own) > 1:  # the label at the end of one panel would run into the next one's first
                ticks = [tick for tick in ticks if (edges[-1] - tick) * to_inches > 0.3 or not tick]
            places: list[float] = []
            for number, panel in enumerate(own):
                start = number * (width + GAP)
                scale = common or _scale([panel.matrix], panel)
                image = axes.pcolormesh(
                    start + edges * to_inches,
                    np.arange(n_rows + 1),
                    panel.matrix,
                    cmap=scale.colours,
                    norm=scale.norm,
                )
                places += [start + tick * to_inches for tick in ticks]
                title = panel.title if is_alike else f"{panel.title}  {scale.said(panel.target)}"
                axes.text(start, n_rows * (1 + 0.06 / height), title, fontsize=11, va="bottom")
                for layer in range(1, len(layers) if n_inner > 1 else 1):
                    axes.plot([start, start + width], [layer * n_inner] * 2, color="white", linewidth=1.2)
            axes.set(xlim=(0, span), ylim=(0, n_rows))
            axes.set_xticks(places, [f"{tick:,.0f}" for tick in ticks] * len(own) if is_lowest else [])
            if is_lowest:
                axes.set_xlabel("optimizer step")
            for spine in axes.spines.values():
                spine.set_visible(False)
            _layer_ticks(axes, layers, n_inner)
            bar = figure.colorbar(image, cax=_axes(figure, margin + span + 0.1, bottom, 0.13, height))
            bar.outline.set_visible(False)
            bar.set_ticks(
                scale.marks, labels=[_short(mark) for mark in scale.marks] if is_alike else scale.words
            )
            bar.ax.tick_params(labelsize=8, length=2)
            if panels[0].unit and is_alike:
                bar.set_label(panels[0].unit, fontsize=9)
        notes = []
        if is_alike and panels[0].diverges and panels[0].target is not None:
            notes.append("white: no change" if panels[0].unit == UNITS["gain"] else "white: on target")
        if n_inner > 1:
            notes.append(f"rows of a layer: its {n_inner} {inner}s, 0 lowest")
        _head(figure, subject, "; ".join(notes))
        return _png(figure)


class Scale(NamedTuple):
    """How numbers become colours.

    Attributes:
        marks: numbers that a colour bar names: the ends, and in between the target or the middle.
        words: what to call them where every panel has numbers of its own.
        norm: of the plotting library.
        colours: name of its map.
        extremes: smallest and largest number.
    """

    marks: tuple[float, float, float]
    words: tuple[str, str, str]
    norm: Any
    colours: str
    extremes: tuple[float, float]

    def said(self, target: float | None) -> str:
        """The range of the numbers in words, for a title."""
        low, high = map(_short, self.extremes)
        return (low if low == high else f"{low} to {high}") + (
            f", target {_short(target)}" if target is not None else ""
        )


def _step_ticks(last: float, width: float) -> list[float]:
    """Round steps, so many as have room in this many inches."""
    wanted = max(int(width / 0.75), 2)
    size = next(
        leading * 10**power
        for power in range(16)
        for leading in (1, 2, 5)
        if last / (leading * 10**power) <= wanted
    )
    return list(np.arange(0, last + 1e-9, size))


def _scale(matrices: Sequence[np.ndarray], panel: Panel) -> Scale:
    from matplotlib.colors import Normalize, TwoSlopeNorm

    numbers = np.concatenate([matrix[np.isfinite(matrix)] for matrix in matrices])
    low, high = (float(numbers.min()), float(numbers.max())) if len(numbers) else (0.0, 1.0)
    extremes = (low, high)
    if panel.diverges and panel.target is not None:
        reach = 0.05 * max(abs(panel.target), 1e-6)
        low, high = min(low, panel.target - reach), max(high, panel.target + reach)
        words = ("lowest", "target", "highest")
        return Scale(
            (low, panel.target, high), words, TwoSlopeNorm(panel.target, low, high), "RdBu_r", extremes
        )
    if panel.unit in (UNITS["share"], UNITS["count"]):
        low, high = 0.0, high or 1.0
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # one colour for one number
        reach = 0.5 * abs(high) or 0.5
        low, high = low - reach, high + reach
    return Scale(
        (low, (low + high) / 2, high), ("low", "", "high"), Normalize(low, high), "viridis", extremes
    )


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


def _head(figure: Any, subject: str, note: str) -> None:
    across, up = figure.get_size_inches()
    figure.text(0.14 / across, 1 - 0.27 / up, subject, fontsize=12, fontweight="bold", va="center")
    if note:
        figure.text(1 - 0.14 / across, 1 - 0.27 / up, note, fontsize=9, va="center", ha="right", color=SOFT)


def _short(number: float) -> str:
    """Three significant digits, without an exponent where that is shorter."""
    if abs(number) >= 1000:
        return f"{number:,.0f}"
    return f"{number:.3g}"


def _png(figure: Any) -> bytes:
    written = io.BytesIO()
    figure.savefig(written, format="png")
    return written.getvalue()
