"""Learning curves from a run's ``metrics.csv``."""

import csv
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from app.analysis import drawable
from app.analysis.style import COLOURS, figure, save

SMOOTHED_SHARE = 0.03  # of a training curve, on either side of a value that stands for its mean


def read_series(metrics: Path, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one column; rows without it, or damaged ones, are left out.

    Args:
        metrics: a ``metrics.csv``.
        key: name of the column.

    Returns:
        ``(n,)`` int64 steps and ``(n,)`` float64 values; both empty where the file or the column is missing.
    """
    rows = []
    if metrics.exists():
        with metrics.open(newline="", encoding="utf-8", errors="replace") as file:
            for row in csv.DictReader(file):
                with suppress(KeyError, TypeError, ValueError):
                    rows.append((int(row["step"]), float(row[key])))
    steps, values = zip(*rows, strict=True) if rows else ((), ())
    return np.asarray(steps, dtype=np.int64), np.asarray(values, dtype=np.float64)


def in_proportion(steps: np.ndarray, known: np.ndarray, x: np.ndarray) -> np.ndarray:
    """What stood at ``x`` at the ``known`` steps, at others in proportion; 0 at step 0."""
    return np.interp(steps, np.r_[0.0, known], np.r_[0.0, x])


def smoothed(values: np.ndarray, half_width: int) -> np.ndarray:
    """Mean over as many neighbours on either side; fewer at the ends, so that a trend is not shifted anywhere.

    Args:
        values: ``(n,)``; what is not finite counts for nothing.
        half_width: neighbours on either side, >= 0.
    """
    n = len(values)
    is_finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(is_finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(is_finite)])
    places = np.arange(n)
    reach = np.minimum(half_width, np.minimum(places, n - 1 - places))
    low, high = places - reach, places + reach + 1
    n_finite = counts[high] - counts[low]
    return np.where(n_finite > 0, (sums[high] - sums[low]) / np.maximum(n_finite, 1), np.nan)


def draw_learning_curve(metrics: Path, target: Path | BinaryIO, title: str, counts: float | None) -> None:
    """Training and validation loss against tokens seen, with what counting reaches as the line to get under.

    Args:
        metrics: a ``metrics.csv``.
        target: PNG file to write, or to write into.
        title: what was trained.
        counts: loss of a count model of the same text, nats per token; None leaves the line out.
    """
    steps, losses, lost = _finite(metrics, "train/loss")
    validated, validation, lost_too = _finite(metrics, "val/loss")
    known, tokens = read_series(metrics, "tokens_seen")
    counts = drawable.number(counts)
    with figure() as (drawn, axes):
        millions = in_proportion(steps, known, tokens) / 1e6
        axes.plot(millions, losses, color=COLOURS[0], alpha=0.25, linewidth=0.8)
        half_width = max(2, round(SMOOTHED_SHARE * len(losses)))
        line = {"color": COLOURS[0], "marker": "o" if len(losses) == 1 else None, "markersize": 4}
        axes.plot(millions, smoothed(losses, half_width), label=f"training (smoothed){lost}", **line)
        axes.plot(
            in_proportion(validated, known, tokens) / 1e6,
            validation,
            color=COLOURS[1],
            marker="o",
            markersize=4,
            label="validation" + (f", {validation[-1]:.3f} at the end" if len(validation) else "") + lost_too,
        )
        if counts is not None:
            draw_baseline(axes, counts)
        axes.set(xlabel="tokens seen, millions", ylabel="loss, nats per token", xlim=(0, None))
        axes.set_title(drawable.text(title))
        axes.legend(loc="upper right", bbox_to_anchor=(1, 0.98))
        save(drawn, target)


def _finite(metrics: Path, key: str) -> tuple[np.ndarray, np.ndarray, str]:
    """Steps and values that have a place in a picture, and in words how many have none; empty where all have one."""
    steps, values = read_series(metrics, key)
    placed = drawable.numbers(values)
    there = np.isfinite(placed)
    n_lost = len(placed) - int(there.sum())
    lost = f", {n_lost:,} of {len(placed):,} are no finite numbers" if n_lost else ""
    return steps[there], placed[there], lost


def draw_baseline(axes: Any, loss: float) -> None:
    """The loss that counting the training text reaches, as a line to get under."""
    label = f"counting alone, {loss:.3f}"
    axes.axhline(loss, color="#666666", linestyle="--", linewidth=1, label=label)


def time_unit(seconds: float) -> tuple[str, float]:
    """Unit in which durations up to this one are best read, and the seconds in it."""
    if seconds >= 2 * 3600:
        return "hours", 3600.0
    return ("minutes", 60.0) if seconds >= 180 else ("seconds", 1.0)
