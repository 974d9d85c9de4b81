"""Learning curves from a run's ``metrics.csv``."""

import csv
from pathlib import Path

import numpy as np

from app.analysis.style import COLOURS, figure


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


def smoothed(values: np.ndarray, half_life: float) -> np.ndarray:
    """Exponential moving average without start-up bias; ``half_life`` in samples."""
    keep = 0.5 ** (1 / half_life)
    average, weight, out = 0.0, 0.0, np.empty_like(values)
    for i, value in enumerate(values):
        average, weight = keep * average + (1 - keep) * value, keep * weight + (1 - keep)
        out[i] = average / weight
    return out


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
        axes.plot(millions, smoothed(losses, 3.0), color=COLOURS[0], label="training (smoothed)")
        axes.plot(
            validated * tokens_per_step / 1e6,
            validation,
            color=COLOURS[1],
            marker="o",
            markersize=4,
            label="validation",
        )
        if bigram is not None:
            axes.axhline(bigram, color="#666666", linestyle="--", linewidth=1)
            axes.annotate(f"add-one bigram {bigram:.2f}", (1, bigram), (0, 3), xycoords=("axes fraction", "data"),
                          textcoords="offset points", ha="right", color="#444444", fontsize=9)  # fmt: skip
        if len(validation):
            axes.annotate(f"{validation[-1]:.3f}", (validated[-1] * tokens_per_step / 1e6, validation[-1]), (0, -13),
                          textcoords="offset points", ha="center", color=COLOURS[1], fontsize=9)  # fmt: skip
        axes.set(xlabel="tokens seen, millions", ylabel="loss, nats per token", title=title, xlim=(0, None))
        axes.legend(loc="upper right", bbox_to_anchor=(1, 0.98))
        drawn.savefig(target)
