"""Matrices with labels become figures: depth over time, one look for all of them.

The paper is light and opaque, so that a figure reads the same on a light and on a dark page.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from app.analysis.colours import Scale, scale_of, short, shown_range
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
GAP, LINE_GAP, WIDTH = 0.2, 0.62, 9.4
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
    """

    title: str
    matrix: np.ndarray
    unit: str = ""
    neutral: float | None = None
    from_zero: bool = False
    white: str = ""

    def is_like(self, other: "Panel") -> bool:
        """Whether both can share one scale of colours."""
        return (self.unit, self.neutral, self.from_zero) == (other.unit, other.neutral, other.from_zero)


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
    if rows.target is not None and rows.kind == "share":
        targets = np.broadcast_to(np.asarray(rows.target), values.shape[:2])
    panels = []
    for number in range(n_panels):
        own = slice(number * n_inner, (number + 1) * n_inner)
        panel = Panel(
            _panel_name(rows, number * n_inner) if n_panels > 1 or n_inner == 1 else "",
            values[:, own].reshape(-1, values.shape[-1]),
            rows.unit or UNITS[rows.kind],
            1.0 if rows.kind == "gain" else rows.neutral,
            rows.kind in ("share", "count"),
            "no change" if rows.kind == "gain" else "",
        )
        if targets is not None and np.ptp(targets[:, own]) < 1e-6:
            target = float(targets[0, number * n_inner])
            panel = panel._replace(neutral=target, white="on target")
        panels.append(panel)
    subject = rows.name.replace("_", " ") + (f" ({rows.note})" if rows.note else "")
    inner = f"rows of a layer: its {n_inner} {rows.inner or 'entry'}s, 0 lowest" if n_inner > 1 else ""
    return _draw_maps(subject, rows.meaning, panels, rows.layers, kept.edges, n_inner, inner)


def draw_group(name: str, group: Mapping[str, tuple[Rows, DepthTime]], meaning: str = "") -> bytes:
    """Several quantities of one group as a PNG, a heat-map each, with a scale of its own.

    Args:
        name: of the group.
        group: title to what the numbers are, and the numbers; one number per layer, the same layers and steps.
        meaning: of all of them together.
    """
    panels = []
    for title, (rows, kept) in group.items():
        named = rows.meaning or title.replace("_", " ")
        unit = f", {rows.unit}" if rows.unit else ""
        panels.append(Panel(named + unit, kept.values, neutral=rows.neutral))
    rows, kept = next(iter(group.values()))
    return _draw_maps(name.replace("_", " "), meaning, panels, rows.layers, kept.edges, 1, "")


def _panel_name(rows: Rows, entry: int) -> str:
    name = rows.entries[entry]
    return name.rpartition(SEPARATOR)[0] if rows.n_inner > 1 else name


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
            label = f"{entry or rows.name}  {short(mean[-1])}"
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
        notes = ["band: smallest to largest layer"] if len(rows.layers) > 1 else []
        matrix = values.reshape(-1, values.shape[-1])
        low, high = shown_range([matrix])
        if np.isfinite(matrix).any() and (low > np.nanmin(matrix) or high < np.nanmax(matrix)):
            axes.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
            reached = f"{short(np.nanmin(matrix))} to {short(np.nanmax(matrix))}"
            notes.append(f"the start leaves the picture: {reached}")
        _head(figure, rows.name.replace("_", " "), rows.meaning, "; ".join(notes))
        return _png(figure)


def _draw_maps(
    subject: str,
    meaning: str,
    panels: Sequence[Panel],
    layers: tuple[str, ...],
    edges: np.ndarray,
    n_inner: int,
    inner: str,
) -> bytes:
    # One bar for all panels, or one beside each.
    is_alike = len(panels) == 1 or (panels[0].unit != "" and all(map(panels[0].is_like, panels)))
    if is_alike:
        scales = [scale_of([p.matrix for p in panels], panels[0].neutral, panels[0].from_zero)] * len(panels)
    else:
        scales = [scale_of([p.matrix], p.neutral, p.from_zero) for p in panels]
    n_rows = panels[0].matrix.shape[0]
    per_line = min(len(panels), PANELS_PER_LINE if is_alike else 3)
    if not is_alike and len(panels) == 4:
        per_line = 2
    n_lines = -(-len(panels) // per_line)
    is_numbered = all(layer.isdecimal() for layer in layers)
    gap = GAP if is_alike else BAR_ROOM
    margin = LEFT + 0.068 * max(max(map(len, layers)) - 3, 0)
    width = (WIDTH - margin - (RIGHT if is_alike else gap) - gap * (per_line - 1)) / per_line
    height = _height(n_rows, is_numbered)
    top = TOP + (0.2 if meaning and any(panel.title for panel in panels) else 0.0)
    up = top + n_lines * (height + LINE_GAP) - LINE_GAP + BOTTOM
    with canvas(WIDTH, up) as figure:
        # Axes are what costs time: the panels of a line share them, side by side.
        for line in range(n_lines):
            own = panels[line * per_line : (line + 1) * per_line]
            bottom = up - top - height - line * (height + LINE_GAP)
            span = len(own) * (width + gap) - gap
            axes = _axes(figure, margin, bottom, span, height)
            to_inches = width / edges[-1]
            ticks = _step_ticks(edges[-1], width)
            if len(own) > 1:  # the label at the end of one panel would run into the next one's first
                ticks = [tick for tick in ticks if (edges[-1] - tick) * to_inches > 0.3 or not tick]
            places: list[float] = []
            for number, panel in enumerate(own):
                start = number * (width + gap)
                scale = scales[line * per_line + number]
                image = _draw_map(axes, panel.matrix, scale, start + edges * to_inches, n_inner)
                places += [start + tick * to_inches for tick in ticks]
                title = panel.title
                if not is_alike:
                    _bar_beside(axes, scale, start + width, n_rows)
                    title += f", target {short(panel.neutral or 0)}" if panel.white == "on target" else ""
                axes.text(start, n_rows * (1 + 0.06 / height), title, fontsize=10, va="bottom")
            axes.set(xlim=(0, span), ylim=(0, n_rows))
            axes.set_xticks(places, [f"{tick:,.0f}" for tick in ticks] * len(own))
            axes.tick_params(axis="x", labelsize=9)
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
                bar.set_label(panels[0].unit, fontsize=9)
        _head(figure, subject, meaning, "; ".join(filter(None, (_white(panels, scales), inner))))
        return _png(figure)


def _draw_map(axes: Any, matrix: np.ndarray, scale: Scale, edges: np.ndarray, n_inner: int) -> Any:
    """The colours of one panel between edges in inches, a line between layers of several rows."""
    import matplotlib

    n_rows = len(matrix)
    image = axes.pcolormesh(
        edges,
        np.arange(n_rows + 1),
        matrix,
        cmap=matplotlib.colormaps[scale.colours].with_extremes(bad="#dddddd"),
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


def _white(panels: Sequence[Panel], scales: Sequence[Scale]) -> str:
    """What white means; empty where it means nothing, or not the same in every panel."""
    meanings = {
        panel.white or short(scale.neutral)
        for panel, scale in zip(panels, scales, strict=True)
        if scale.neutral is not None
    }
    return f"white: {meanings.pop()}" if len(meanings) == 1 else ""


def _height(n_rows: int, is_numbered: bool) -> float:
    """Inches of a panel: rows of a deep network are thinner, rows with names are not."""
    if not is_numbered:
        return float(np.clip(0.16 * n_rows, 1.1, 9.0))
    return float(np.clip(0.2 * min(n_rows, 12) + 0.06 * max(n_rows - 12, 0), 1.1, 5.5))


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


def _head(figure: Any, subject: str, meaning: str, note: str) -> None:
    across, up = figure.get_size_inches()
    left, right = 0.14 / across, 1 - 0.14 / across
    figure.text(left, 1 - 0.27 / up, subject, fontsize=12, fontweight="bold", va="center")
    if meaning:
        figure.text(left, 1 - 0.49 / up, meaning, fontsize=9, va="center", color=SOFT)
    if note:
        figure.text(right, 1 - 0.27 / up, note, fontsize=9, va="center", ha="right", color=SOFT)


def _png(figure: Any) -> bytes:
    written = io.BytesIO()
    figure.savefig(written, format="png")
    return written.getvalue()
