"""Pictures of what architectures can do: accuracy against difficulty, and against what they remember."""

from collections.abc import Mapping
from typing import Any, BinaryIO

from app.analysis import style

#: small pictures side by side
N_COLUMNS = 2


def tasks_of(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of each task by label, of those that have an accuracy; empty of a study without tasks."""
    found: dict[str, dict[str, Any]] = {}
    for row in report["rows"].values():
        if row["figures"] and row.get("accuracy") is not None and row.get("task"):
            found.setdefault(row["task"], {})[row["label"]] = row
    return found


def draw_difficulty(report: Mapping[str, Any], target: BinaryIO) -> None:
    """How the accuracy falls with difficulty: a small picture a task, a line a row."""
    tasks = tasks_of(report)
    n_rows = -(-len(tasks) // N_COLUMNS)
    colours = _colours(report)
    size = (style.NARROW / N_COLUMNS * min(N_COLUMNS, len(tasks)), 0.7 + 2.0 * n_rows)
    with style.figure(figsize=size, ncols=min(N_COLUMNS, len(tasks)), nrows=n_rows, squeeze=False) as (
        drawn,
        axes,
    ):
        places = list(axes.flat)
        for place, (task, rows) in zip(places, tasks.items(), strict=False):
            kind = _kind(rows)
            for label, row in rows.items():
                points = _points(row, kind)
                x = [value for value, _ in points] or [0]
                y = [share for _, share in points] or [row["accuracy"]]
                place.plot(x, y, "o-", markersize=3, linewidth=1.2, color=colours[label], label=label)
            if len(points) <= 8:  # none at all where a task has no slices
                place.set_xticks([value for value, _ in points])
            place.set_title(task, fontsize=9)
            place.set_xlabel(kind or "all positions", fontsize=8)
            place.set_ylim(-0.03, 1.03)
            place.tick_params(labelsize=8)
        for place in places[len(tasks) :]:
            place.set_axis_off()
        places[0].set_ylabel("accuracy", fontsize=8)
        _legend(drawn, places[0])
        style.save(drawn, target)


def draw_state(report: Mapping[str, Any], target: BinaryIO) -> None:
    """Whether memory buys accuracy: a dot for each row and task, against the bytes kept of a window."""
    tasks = tasks_of(report)
    colours = _colours(report)
    with style.figure(figsize=(style.NARROW, 3.8)) as (drawn, axes):
        for rows in tasks.values():
            for label, row in rows.items():
                axes.plot(
                    [row["state_bytes"]],
                    [row["accuracy"]],
                    "o",
                    color=colours[label],
                    markersize=5,
                    alpha=0.8,
                )
        for label, colour in colours.items():
            axes.plot([], [], "o", color=colour, label=label)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_xlabel("bytes that the network keeps of a window")
        axes.set_ylabel("accuracy")
        axes.set_ylim(-0.03, 1.03)
        _legend(drawn, axes)
        style.save(drawn, target)


def _colours(report: Mapping[str, Any]) -> dict[str, str]:
    labels = dict.fromkeys(row["label"] for row in report["rows"].values())
    return {label: style.COLOURS[i % len(style.COLOURS)] for i, label in enumerate(labels)}


def _kind(rows: Mapping[str, Any]) -> str:
    """The slices that stand on the axis: the kind with most of them, the first of equals; empty without any."""
    counts: dict[str, int] = {}
    for name in next(iter(rows.values())).get("slices") or {}:
        kind = name.rpartition("_")[0]
        counts[kind] = counts.get(kind, 0) + 1
    return max(counts, key=lambda kind: counts[kind], default="")


def _points(row: Mapping[str, Any], kind: str) -> list[tuple[int, float]]:
    slices = (row.get("slices") or {}).items()
    return sorted(
        (int(name.rpartition("_")[2]), share) for name, share in slices if name.rpartition("_")[0] == kind
    )


def _legend(drawn: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside upper center", ncols=min(5, len(labels)), fontsize=8)
