"""What an idea is worth in compute: its loss beside the baseline's ladder."""

from collections.abc import Mapping
from typing import Any, BinaryIO

from app.analysis import drawable, style
from app.study.multiplier import Point, curve


def has_ladder(report: Mapping[str, Any]) -> bool:
    """Whether a row has a compute multiplier, which takes a ladder."""
    return any("multiplier" in row for row in report["rows"].values())


def draw_compute(report: Mapping[str, Any], target: BinaryIO) -> None:
    """The ladder's losses over their FLOPs, with the curve that multipliers are read from; each idea beside it."""
    whole = {name: row for name, row in report["rows"].items() if row["figures"] and row.get("flops")}
    rungs = [row for row in whole.values() if row["label"] == report["ladder"]]
    ladder = [Point(float(row["flops"]), row["mean"], len(row["figures"])) for row in rungs]
    ideas = {name: row for name, row in whole.items() if "multiplier" in row}
    with style.figure(figsize=(style.NARROW, 3.6 + 0.2 * (len(ideas) // 2))) as (drawn, axes):
        axes.plot(*curve(ladder), color="#777777", linewidth=1.2)
        at, losses = [rung.flops for rung in ladder], [rung.loss for rung in ladder]
        axes.plot(at, losses, "o", color="#777777", markersize=4, label=drawable.text(report["ladder"], 24))
        for number, (name, row) in enumerate(ideas.items()):
            colour = style.COLOURS[number % len(style.COLOURS)]
            mark = "osD^v"[number // len(style.COLOURS) % 5]
            if row.get("interval"):
                axes.plot([row["flops"]] * 2, drawable.numbers(row["interval"]), color=colour, linewidth=1.6)
            worth = row["multiplier"]["value"]
            label = f"{drawable.text(name, 24)} × {worth}"
            axes.plot(
                [row["flops"]], drawable.numbers([row["mean"]]), mark, color=colour, markersize=6, label=label
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("e+", "e"))
        axes.xaxis.set_minor_formatter(lambda value, _: "")
        axes.set_xlabel("FLOPs of the training")
        axes.set_ylabel(report["decides"])
        drawn.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8)
        style.save(drawn, target)
