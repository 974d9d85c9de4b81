"""The picture of gains over depth."""

import textwrap
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from app.analysis import drawable
from app.analysis.gamma import Gammas
from app.analysis.gamma_null import written
from app.analysis.style import COLOURS, figure, save

MAX_FAMILIES = 24
COLUMNS = 4
MAX_NAME = 32  # characters of a family


def draw(gammas: Gammas, target: Path | BinaryIO, title: str) -> None:
    """Every family over depth in a panel of its own with its best fit, and the temperatures beside the cooling laws.

    Args:
        gammas: what is drawn.
        target: PNG file to write, or to write into.
        title: whose gains they are.
    """
    kinds = gammas.scales.kinds
    families = [family for kind in ("norm", "matrix") for family, own in kinds.items() if own == kind]
    shown = families[:MAX_FAMILIES]
    n_panels = len(shown) + len(gammas.temperatures)
    n_columns = min(COLUMNS, n_panels)
    n_rows = -(-n_panels // n_columns)
    size = (3.6 * n_columns, 2.7 * n_rows + 0.8)
    with figure(ncols=n_columns, nrows=n_rows, squeeze=False, figsize=size) as (drawn, grid):
        panels = list(grid.flat)
        for axes, family in zip(panels, shown, strict=False):
            _family(axes, gammas, family)
        for number, name in enumerate(gammas.temperatures):
            _temperature(panels[len(shown) + number], gammas, name, number)
        for axes in panels[n_panels:]:
            axes.set_axis_off()
        for column in range(n_columns):
            last = max(row for row in range(n_rows) if row * n_columns + column < n_panels)
            grid[last, column].set_xlabel("layer")
        left_out = len(families) - len(shown)
        reading = [
            "line: best fit by AICc, with r2 on ln y and how often chance would bring as good a form in as many "
            "families"
            if any(gammas.best.values())
            else "too few layers for a fit",
            f"{left_out} more families not shown" if left_out else "",
        ]
        lines = [drawable.text(title), *textwrap.wrap("; ".join(filter(None, reading)), 40 * n_columns)]
        drawn.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=11)
        save(drawn, target)


def _family(axes: Any, gammas: Gammas, family: str) -> None:
    kind = gammas.scales.kinds[family]
    layers, found = gammas.scales.series(family)
    values = drawable.numbers(found)
    # What matrices do over depth is the ratio: several kinds have several sizes of entries.
    unit = values[0] if kind == "matrix" and values[0] > 0 else 1.0
    colour = COLOURS[0 if kind == "norm" else 1]
    best = gammas.best[family]
    look: dict[str, Any] = {"linestyle": "" if best else "-", "linewidth": 0.8, "markersize": 3.5}
    axes.plot(layers, drawable.numbers(values / unit), marker="o", color=colour, **look)
    if best:
        fit = gammas.fits[family][best]
        split = fit.parameters.get("split", np.inf)  # in layers counted from 1; the form jumps there
        at, fitted = np.array(layers), drawable.numbers(drawable.numbers(fit.fitted) / unit)
        for side in (at + 1 < split, at + 1 >= split):
            axes.plot(at[side], fitted[side], color="#333333", linewidth=1.1)
    said = f"\n{_scored(gammas, family, best)}" if best else ""
    axes.set_title(f"{drawable.text(family, MAX_NAME)}{said}", fontsize=9)
    axes.set_ylabel("gain, rms" if kind == "norm" else "rms / first layer's", fontsize=8)
    _plain_ticks(axes)


def _plain_ticks(axes: Any) -> None:
    """Layers as whole numbers; heights without an offset, for a reader would have to add it."""
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.tick_params(labelsize=8)
    if axes.get_yscale() != "log":
        axes.ticklabel_format(axis="y", useOffset=False)


def _scored(gammas: Gammas, family: str, form: str) -> str:
    """A form, how much it explains, and how often chance would bring as good a form in as many families."""
    r2, chance = gammas.fits[family][form].r2_log, gammas.chance.get(family)
    words = [form.replace("_", " ")]
    words += [] if r2 is None else [f"r2 {r2:.2f}"]
    words += [] if chance is None else [written(chance.p_family, 2)]
    return ", ".join(words)


def _temperature(axes: Any, gammas: Gammas, name: str, number: int) -> None:
    from matplotlib.ticker import LogFormatter

    dashes = {"kirkpatrick": "--", "hajek": ":"}
    names = {"kirkpatrick": "geometric", "hajek": "c / ln(L + c2)"}
    temperature, colour = gammas.temperatures[name], COLOURS[(2 + number) % len(COLOURS)]
    values = drawable.numbers(temperature.values)
    axes.plot(temperature.layers, values, "o-", color=colour, markersize=3, linewidth=0.8)
    heights = [values]
    for law in temperature.laws.values():
        if not law.undefined and law.r2 is not None:
            label = f"{names[law.law]}, r2 {law.r2:.2f}" + (" (at its bound)" if law.note else "")
            fitted = drawable.numbers(law.fitted)
            axes.plot(
                temperature.layers, fitted, dashes[law.law], color="#333333", linewidth=1.1, label=label
            )
            heights.append(fitted)
    spread = np.concatenate(heights)
    spread = spread[np.isfinite(spread)]
    if len(spread) and spread.min() > 0 and spread.max() / spread.min() > 4:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.4)))
    rule = drawable.text(f"{name}: {temperature.rule}", 2 * MAX_NAME)
    axes.set_title(f"attention temperature,\n{rule}", fontsize=9)
    axes.set_ylabel("T(L) / T(0)", fontsize=8)
    _plain_ticks(axes)
    if len(heights) > 1:
        low, high = axes.get_ylim()
        room = 0.12 * len(heights)  # above the curves, so that the names cover none of them
        is_log = axes.get_yscale() == "log"
        axes.set_ylim(low, high * (high / low) ** room if is_log else high + (high - low) * room)
        axes.legend(fontsize=7, loc="upper left", borderaxespad=0.2, handlelength=1.6)
