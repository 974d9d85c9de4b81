"""Ablations as rows of a table and as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from app.analysis import drawable
from app.analysis.ablation import place
from app.analysis.ablation_kinds import KINDS
from app.analysis.style import COLOURS, figure, save

HEADER = ("where", "what", "Δ nats", "95 % interval")
#: rows of a kind in the table, of all kinds in the picture; the others are in the JSON file
ROWS_PER_KIND, ROWS_DRAWN = 8, 40


def table_rows(entries: Sequence[Mapping[str, Any]]) -> tuple[list[list[str]], int]:
    """Rows under :data:`HEADER`, the dearest kind first, and how many others there are."""
    kinds = list(dict.fromkeys(entry["kind"] for entry in entries))
    rows, n_left = [], 0
    for kind in kinds:
        of_kind = [entry for entry in entries if entry["kind"] == kind]
        n_left += max(0, len(of_kind) - ROWS_PER_KIND)
        for entry in of_kind[:ROWS_PER_KIND]:
            low, high = (signed(end) for end in entry["interval"])
            rows.append([place(entry), entry["label"], signed(entry["delta"]), f"{low} … {high}"])
    return rows, n_left


def signed(value: float) -> str:
    """A difference of losses with its sign, none before a zero."""
    return f"{round(value, 4) + 0.0:+.4f}" if round(value, 4) else "0.0000"


def draw(summary: Mapping[str, Any], target: Path | BinaryIO) -> None:
    """What each ablation costs, with its interval: a line each, dearest at the top.

    Args:
        summary: of :func:`app.analysis.ablation.summarise`.
        target: PNG file to write, or to write into.
    """
    entries = list(summary["ablations"])
    shown = entries[:ROWS_DRAWN]
    model, text = drawable.text(summary["model"]), drawable.text(summary["text"])
    with figure(figsize=(9.0, 1.9 + 0.24 * len(shown))) as (drawn, axes):
        height = np.arange(len(shown))[::-1]
        kinds = sorted({entry["kind"] for entry in shown}, key=KINDS.index)
        for number, kind in enumerate(kinds):
            colour = COLOURS[number % len(COLOURS)]
            at = [row for row, entry in enumerate(shown) if entry["kind"] == kind]
            delta = drawable.numbers([shown[row]["delta"] for row in at])
            ends = drawable.numbers([shown[row]["interval"] for row in at]).reshape(-1, 2)
            error = np.abs(ends - delta[:, None]).T
            axes.errorbar(
                delta, height[at], xerr=error, fmt="o", color=colour, markersize=4, elinewidth=1.4, label=kind
            )
        axes.axvline(0, color="#666666", linewidth=1, zorder=1)
        names = [drawable.text(f"{place(entry)}: {entry['label']}") for entry in shown]
        axes.set_yticks(height, names, fontsize=8)
        axes.set_ylim(-1, len(shown))
        axes.set_xlabel("loss above the network's own, nats per token (bars: 95 %, bootstrap over windows)")
        if shown:
            drawn.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
        of_all = f", the dearest {len(shown)} of {len(entries)}" if len(shown) < len(entries) else ""
        drawn.suptitle(
            f"What {model} loses without a part{of_all}; its own loss is {summary['baseline']['loss']:.4f} nats\n"
            f"on {summary['n_blocks']} windows of {summary['seq_len']} tokens of {text}",
            fontsize=10.5, x=0.01, ha="left",
        )  # fmt: skip
        save(drawn, target)
