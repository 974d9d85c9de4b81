"""The picture of a comparison: losses against tokens and against seconds of training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from app.analysis import drawable
from app.analysis.comparison import Comparison, Group, Run
from app.analysis.curves import SMOOTHED_SHARE, draw_baseline, smoothed, time_unit
from app.analysis.style import COLOURS, figure, save

LINES = ("-", "--", ":", "-.")  # a further round of colours has another line
MOST_WITH_TRAINING = 5  # groups up to which the training loss is drawn beside the validation
MOST_SAID = 150  # characters of what leaves the picture
#: the share of a curve that may leave the picture at its top, so that its end can be read
START_SHARE = 0.15


class Curve(NamedTuple):
    """Mean and sample standard deviation over the runs of a group, each ``(n,)``."""

    x: np.ndarray
    mean: np.ndarray
    sd: np.ndarray


def draw_comparison(comparison: Comparison, target: Path | BinaryIO) -> list[str]:
    """Draws validation (marked) and, of few groups, smoothed training losses (thin) of every group.

    Args:
        comparison: at least one group.
        target: PNG file to write, or to write into.

    Returns:
        What is not in the picture, and why.
    """
    groups, notes = comparison.groups, []
    loss_key = comparison.loss_key
    train_key = loss_key.replace("val/", "train/")
    drawn_training = len(groups) <= MOST_WITH_TRAINING
    longest = max(largest(run.against("speed/seconds", train_key)[0]) for g in groups for run in g.runs)
    unit, per_unit = time_unit(longest)
    tokens = max(largest(run.series("tokens_seen")[1]) for g in groups for run in g.runs)
    size, per_size = ("millions", 1e6) if tokens >= 1e6 else ("thousands", 1e3)
    panels = (
        ("tokens_seen", per_size, f"tokens seen, {size}", "At equal tokens"),
        ("speed/seconds", per_unit, f"training time without validation, {unit}", "At equal time"),
    )
    n_rows = len(groups)
    with figure(ncols=2, figsize=(11.0, 4.4 + 0.2 * n_rows), sharey=True) as (drawn, axes):
        heights: list[float] = []
        floors: list[float] = []
        shown: dict[str, list[np.ndarray]] = {}
        for axis, (x_key, scale, label, title) in zip(axes, panels, strict=True):
            for i, group in enumerate(groups):
                look = {
                    "color": COLOURS[i % len(COLOURS)],
                    "linestyle": LINES[i // len(COLOURS) % len(LINES)],
                }
                validation = curve_of(group.runs, x_key, loss_key)
                training = curve_of(group.runs, x_key, train_key, SMOOTHED_SHARE)
                if not len(validation.x) and not len(training.x):
                    notes.append(f"{group.letter}: nothing logged over {x_key}, not drawn there")
                    continue
                if len(training.x) and (drawn_training or not len(validation.x)):
                    marker = "." if len(training.x) == 1 else None
                    axis.plot(
                        training.x / scale, training.mean, linewidth=0.9, alpha=0.5, marker=marker, **look
                    )
                    shown.setdefault(f"{group.letter} (training)", []).append(training.mean)
                if len(validation.x):
                    _plot_validation(axis, validation, scale, look)
                    edges = np.concatenate([validation.mean - validation.sd, validation.mean + validation.sd])
                    shown.setdefault(group.letter, []).append(edges)
                main = validation if len(validation.x) else training
                later = (main.mean + main.sd)[int(START_SHARE * len(main.mean)) :]
                heights += later[np.isfinite(later)].tolist()
                lowest = np.concatenate([main.mean, training.mean[-1:]])
                floors += lowest[np.isfinite(lowest)].tolist()
            axis.set(xlabel=label, title=title, xlim=(0, None))
        if heights and max(heights) > min(floors):
            margin = 0.06 * (max(heights) - min(floors))
            axes[0].set_ylim(min(floors) - margin, max(heights) + margin)
        if comparison.baseline is not None:
            shown["counting alone"] = [np.array([comparison.baseline])]
            for axis in axes:
                draw_baseline(axis, comparison.baseline)
        unit_of_loss = "nats per token" if loss_key == "val/loss" else "bits per byte"
        axes[0].set_ylabel(f"loss, {unit_of_loss}")
        _add_legend(drawn, comparison, drawn_training, leaving(shown, *axes[0].get_ylim()))
        save(drawn, target)
    return notes


def curve_of(runs: Sequence[Run], x_key: str, key: str, smoothed_share: float = 0.0) -> Curve:
    """Mean and spread of a key at the steps that all runs have logged, over the runs' mean x.

    Args:
        runs: of one group.
        x_key: key of the horizontal axis.
        key: key of the vertical one.
        smoothed_share: of each run, on either side of a value that stands for its mean; 0 for none.
    """
    found = []
    for run in runs:
        steps, values = run.series(key)
        x, values = drawable.numbers(run.against(x_key, key)[0]), drawable.numbers(values)
        if smoothed_share and len(values):
            values = smoothed(values, max(1, round(smoothed_share * len(values))))
        found.append({step: (x_at, y) for step, x_at, y in zip(steps, x, values, strict=False)})
    common = sorted(set.intersection(*(set(points) for points in found)))
    table = np.array([[points[step] for step in common] for points in found], dtype=np.float64)
    if not common:
        return Curve(np.empty(0), np.empty(0), np.empty(0))
    x, y = table[..., 0], table[..., 1]
    sd = y.std(0, ddof=1) if len(runs) > 1 else np.zeros(len(common))
    return Curve(x.mean(0), y.mean(0), sd)


def largest(values: np.ndarray) -> float:
    """The largest finite number, at least 0."""
    return float(np.nan_to_num(drawable.numbers(values)).max(initial=0.0))


def _look(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": LINES[index // len(COLOURS) % len(LINES)]}


def _plot_validation(axis: Any, curve: Curve, scale: float, look: dict[str, Any]) -> None:
    marks: dict[str, Any] = {"marker": "o", "markersize": 3.5, "markevery": max(1, len(curve.x) // 20)}
    axis.plot(curve.x / scale, curve.mean, linewidth=1.6, **look, **marks)
    if (curve.sd > 0).any():
        low, high = curve.mean - curve.sd, curve.mean + curve.sd
        axis.fill_between(curve.x / scale, low, high, color=look["color"], alpha=0.18, linewidth=0)


def leaving(series: Mapping[str, Sequence[np.ndarray]], low: float, high: float) -> str:
    """Which series leave a frame, and at which edge; empty where none does.

    Args:
        series: name to values; what is not finite counts for nothing.
        low: lower edge.
        high: upper edge.
    """
    said = []
    for edge, is_out in (("top", lambda y: y > high), ("bottom", lambda y: y < low)):
        names = [name for name, values in series.items() if any(bool(is_out(y).any()) for y in values)]
        said += [f"at the {edge} {', '.join(names)}"] if names else []
    return f"leave the frame: {'; '.join(said)}" if said else ""


def _add_legend(drawn: Any, comparison: Comparison, drawn_training: bool, leave: str) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for i, group in enumerate(comparison.groups):
        look = _look(i)
        handles.append(
            Line2D([], [], marker="o", markersize=3.5, linewidth=1.6, label=_entry(group, comparison), **look)
        )
    kinds = "thick with dots: validation"
    if comparison.baseline is not None:
        kinds += f"; dashed: counting alone, {comparison.baseline:.3f}"
    if drawn_training:
        kinds += "; thin: training, smoothed"
    if any(len(group.runs) > 1 for group in comparison.groups):
        kinds += "; band: ± one standard deviation over seeds"
    kinds += f"\n{drawable.text(leave, MOST_SAID)}" if leave else ""
    drawn.legend(handles=handles, loc="outside upper left", title=kinds, alignment="left", title_fontsize=9)


def _entry(group: Group, comparison: Comparison) -> str:
    logged = drawable.numbers(np.concatenate([run.series(comparison.loss_key)[1] for run in group.runs]))
    n_lost = int(np.isnan(logged).sum())
    lost = f"   {n_lost:,} of {len(logged):,} are no finite numbers" if n_lost else ""
    found = group.figures().get(comparison.loss_key)
    if found is None:
        return drawable.text(group.name)
    spread = f" ± {found.sd:.3f}" if found.n > 1 else ""
    return f"{drawable.text(group.name)}   {drawable.text(f'last validation {found.mean:.3f}{spread}{lost}')}"
