"""Learning curves from a run's ``metrics.csv``."""

import csv
from pathlib import Path

import numpy as np

from app.analysis.style import COLOURS, figure

SMOOTHED_SHARE = 0.03  # of a training curve, on either side of a value that stands for its mean


def read_series(metrics: Path, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one column, rows without it left out.

    Args:
        metrics: a ``metrics.csv``.
        key: name of the column.

    Returns:
        ``(n,)`` int64 steps and ``(n,)`` float64 values; both empty where the column is missing.
    """
    with metrics.open(newline="") as file:
        rows = [(int(row["step"]), float(row[key])) for row in csv.DictReader(file) if row.get(key)]
    steps, values = zip(*rows, strict=True) if rows else ((), ())
    return np.asarray(steps, dtype=np.int64), np.asarray(values, dtype=np.float64)


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


def draw_learning_curve(
    metrics: Path, target: Path, tokens_per_step: int, title: str, bigram: float | None
) -> None:
    """Training and validation loss against tokens seen, with the bigram as the line to get under.

    Args:
        metrics: a ``metrics.csv``.
        target: PNG file to write.
        tokens_per_step: training tokens of one optimizer step.
        title: what was trained.
        bigram: loss of an add-one bigram of the same text, nats per token; None leaves the line out.
    """
    steps, losses = read_series(metrics, "train/loss")
    validated, validation = read_series(metrics, "val/loss")
    with figure() as (drawn, axes):
        millions = steps * tokens_per_step / 1e6
        axes.plot(millions, losses, color=COLOURS[0], alpha=0.25, linewidth=0.8)
        half_width = max(2, round(SMOOTHED_SHARE * len(losses)))
        axes.plot(millions, smoothed(losses, half_width), color=COLOURS[0], label="training (smoothed)")
        axes.plot(
            validated * tokens_per_step / 1e6,
            validation,
            color=COLOURS[1],
            marker="o",
            markersize=4,
            label="validation" + (f", {validation[-1]:.3f} at the end" if len(validation) else ""),
        )
        if bigram is not None:
            label = f"add-one bigram of the text, {bigram:.2f}"
            axes.axhline(bigram, color="#666666", linestyle="--", linewidth=1, label=label)
        axes.set(xlabel="tokens seen, millions", ylabel="loss, nats per token", title=title, xlim=(0, None))
        axes.legend(loc="upper right", bbox_to_anchor=(1, 0.98))
        drawn.savefig(target)


def time_unit(seconds: float) -> tuple[str, float]:
    """Unit in which durations up to this one are best read, and the seconds in it."""
    if seconds >= 2 * 3600:
        return "hours", 3600.0
    return ("minutes", 60.0) if seconds >= 180 else ("seconds", 1.0)
