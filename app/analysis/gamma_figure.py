"""The picture of gains over depth."""

from pathlib import Path
from typing import Any

import numpy as np

from app.analysis.gamma import Gammas
from app.analysis.style import COLOURS, figure

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
MAX_FAMILIES = 12  # of a kind in one panel


def draw(gammas: Gammas, target: Path, title: str) -> None:
    """Norm gains and matrix scales over depth with their best fits, and the temperature beside the cooling laws.

    Args:
        gammas: what is drawn.
        target: PNG file to write.
        title: whose gains they are.
    """
    kinds = [kind for kind in ("norm", "matrix") if kind in gammas.scales.kinds.values()]
    n_panels = len(kinds) + bool(gammas.temperatures)
    with figure(ncols=n_panels, squeeze=False, figsize=(4.9 * n_panels, 4.6)) as (drawn, (panels,)):
        for axes, kind in zip(panels, kinds, strict=False):
            _families(axes, gammas, kind)
        if gammas.temperatures:
            _temperature(panels[-1], gammas)
        drawn.suptitle(title, x=0.01, ha="left", fontsize=12)
        drawn.savefig(target, format="png")


def _families(axes: Any, gammas: Gammas, kind: str) -> None:
    families = [family for family, own in gammas.scales.kinds.items() if own == kind]
    is_fitted = any(gammas.best[family] for family in families)
    for number, family in enumerate(families[:MAX_FAMILIES]):
        layers, values = gammas.scales.series(family)
        # Matrices of several kinds have several sizes of entries; what they do over depth is the ratio.
        unit = values[0] if kind == "matrix" and values[0] > 0 else 1.0
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        best = gammas.best[family]
        label = f"{family}: {_scored(gammas, family, best)}" if best else family
        look = {"linestyle": "" if is_fitted else "-", "linewidth": 0.8, "markersize": 3.5}
        axes.plot(layers, np.array(values) / unit, marker=marker, color=colour, label=label, **look)
        if best:
            fit = gammas.fits[family][best]
            split = fit.parameters.get("split", np.inf)  # in layers counted from 1; the form jumps there
            at, fitted = np.array(layers), np.array(fit.fitted) / unit
            for side in (at + 1 < split, at + 1 >= split):
                axes.plot(at[side], fitted[side], color=colour, linewidth=1.1)
    left_out = len(families) - MAX_FAMILIES
    name = "gain, rms" if kind == "norm" else "rms of entries, over the first layer's"
    axes.set(xlabel="layer", ylabel=name + (f" ({left_out} more not shown)" if left_out > 0 else ""))
    fits = "lines: best fit by AICc, p: of random walks" if is_fitted else "too few layers for a fit"
    axes.set_title(f"{'norms' if kind == 'norm' else 'matrices'} ({fits})")
    axes.xaxis.get_major_locator().set_params(integer=True)
    n_columns = 1 if len(families) <= 2 else 2
    _legend_above(axes, -(-min(len(families), MAX_FAMILIES) // n_columns), n_columns)


def _scored(gammas: Gammas, family: str, form: str) -> str:
    """A form, how much it explains, and how often it explains as much of a random walk."""
    r2, chance = gammas.fits[family][form].r2_log, gammas.chance.get(family, {}).get(form)
    words = [form.replace("_", " ")]
    words += [] if r2 is None else [f"r2 {r2:.2f}"]
    words += [] if chance is None else [f"p {chance['p']:.2f}"]
    return ", ".join(words)


def _legend_above(axes: Any, n_rows: int, ncols: int = 1) -> None:
    """Room above the curves, so that the names cover none of them."""
    low, high = axes.get_ylim()
    share = min(0.055 * n_rows + 0.03, 0.6)  # of the height
    if axes.get_yscale() == "log":
        axes.set_ylim(low, high * (high / low) ** (share / (1 - share)))
    else:
        axes.set_ylim(low, high + (high - low) * share / (1 - share))
    axes.legend(fontsize=7, ncols=ncols, loc="upper left", handletextpad=0.3, columnspacing=0.8)


def _temperature(axes: Any, gammas: Gammas) -> None:
    dashes = {"kirkpatrick": "--", "hajek": ":"}
    names = {"kirkpatrick": "geometric", "hajek": "c / ln(L + c2)"}
    for number, (name, temperature) in enumerate(gammas.temperatures.items()):
        colour = COLOURS[number]
        axes.plot(
            temperature.layers, temperature.values, "o-", color=colour, markersize=3, linewidth=0.8,
            label=f"{name}: {temperature.rule}",
        )  # fmt: skip
        for law in temperature.laws.values():
            if not law.undefined and law.r2 is not None:
                axes.plot(
                    temperature.layers, law.fitted, dashes[law.law], color=colour, linewidth=1.1,
                    label=f"{names[law.law]}, r2 {law.r2:.2f}" + (" (at its bound)" if law.note else ""),
                )  # fmt: skip
    spread = np.concatenate([t.values for t in gammas.temperatures.values()])
    if spread.min() > 0 and spread.max() / spread.min() > 4:
        axes.set_yscale("log")
    has_laws = any(not law.undefined for t in gammas.temperatures.values() for law in t.laws.values())
    title = "attention temperature" + (" and cooling laws" if has_laws else "")
    axes.set(xlabel="layer", ylabel="T(L) / T(0)", title=title)
    axes.xaxis.get_major_locator().set_params(integer=True)
    _legend_above(axes, len(axes.get_legend_handles_labels()[1]))
