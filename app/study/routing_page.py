"""The tables and the pictures of ``app study routing``; each picture answers one question."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from app.analysis import drawable, style

HEADER = ("router", "Δ nats", "95 % interval", "input tells", "verdict")
CONTROL_HEADER = ("chosen by", "seeds", "loss", "router less", "95 % interval", "verdict")
#: what each asks
QUESTIONS = {
    "routing-exchange.png": "Is the choice better than the others?",
    "routing-controls.png": "Is a router better than none?",
    "routing-tokens.png": "What tells the choice?",
    "routing-coactivation.png": "Which routers decide alike?",
    "routing-saturation.png": "When were the choices settled?",
    "routing-retention.png": "How many choices does the network need?",
}
#: colours of verdicts
GOOD, NONE, OPEN = style.COLOURS[2], style.COLOURS[0], "#777777"
COLOUR = {"specialised": GOOD, "useful": GOOD, "not": NONE, "equivalent": NONE, "harmful": style.COLOURS[1]}


def rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Of :data:`HEADER`, a row for each router."""
    return [
        [
            entry["name"],
            f"{entry['effect']:+.4f}",
            "{:+.4f} to {:+.4f}".format(*entry["interval"]),
            "–" if (told := entry["told_by"].get("input")) is None else f"{told['share']:.0%}",
            entry["verdict"],
        ]
        for entry in report["routers"]
    ]


def control_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Of :data:`CONTROL_HEADER`, a row for the network itself and one for each control."""
    own = report["own"]
    first = ["the router", str(len(own)), f"{np.mean(own):.4f}", "", "", ""]
    return [
        first,
        *(
            [
                control["control"],
                str(control["n"]),
                f"{control['mean']:.4f}",
                f"{control['difference']:+.4f}",
                "{:+.4f} to {:+.4f}".format(*control["interval"]),
                control["verdict"] + (f", {control['seeds']} seeds would decide" if control["seeds"] else ""),
            ]
            for control in report["controls"]
        ),
    ]


def pictures(report: Mapping[str, Any]) -> dict[str, Callable[[BinaryIO], None]]:
    """File to what draws it, of the pictures that there is something to draw for."""
    entries = report["routers"]
    found: dict[str, Callable[[BinaryIO], None]] = {
        "routing-exchange.png": lambda target: _draw_intervals(
            [(e["name"], e["effect"], e["interval"], e["verdict"]) for e in entries],
            "nats per token by which other choices are worse", (0.0, report["margin"]), target,
        ),
        "routing-tokens.png": lambda target: _draw_tokens(entries, target),
    }  # fmt: skip
    if report["controls"]:
        margin = report["margin"]
        found["routing-controls.png"] = lambda target: _draw_intervals(
            [(c["control"], c["difference"], c["interval"], c["verdict"]) for c in report["controls"]],
            "loss with the router less that of the control, nats", (-margin, margin), target,
        )  # fmt: skip
    if len(entries) > 1:
        found["routing-coactivation.png"] = lambda target: _draw_coactivation(report, target)
    if len(report["saturation"]) > 1:
        found["routing-saturation.png"] = lambda target: _draw_saturation(report, target)
    if report["retention"]:
        found["routing-retention.png"] = lambda target: _draw_retention(report, target)
    return {name: found[name] for name in QUESTIONS if name in found}


Entry = tuple[str, float, Sequence[float], str]


def _draw_intervals(
    entries: Sequence[Entry], label: str, band: tuple[float, float], target: BinaryIO
) -> None:
    """A line for each entry: its number with the interval, in the colour of its verdict; the margin as a band."""
    with style.figure(figsize=(style.NARROW, 1.1 + 0.26 * len(entries))) as (drawn, axes):
        axes.axvspan(*band, color=NONE, alpha=0.14, linewidth=0)
        axes.axvline(0, color="#666666", linewidth=1)
        for place, (_, value, ends, verdict) in enumerate(entries):
            colour = COLOUR.get(verdict, OPEN)
            axes.plot(drawable.numbers(ends), [place, place], color=colour, linewidth=1.8)
            axes.plot(drawable.numbers([value]), [place], "o", color=colour, markersize=4.5)
        for verdict in dict.fromkeys(entry[3] for entry in entries):
            axes.plot([], [], "o-", color=COLOUR.get(verdict, OPEN), label=verdict)
        axes.set_yticks(range(len(entries)), [drawable.text(entry[0], 24) for entry in entries])
        axes.set_ylim(len(entries) - 0.5, -0.5)
        axes.set_xlabel(label)
        drawn.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3)
        style.save(drawn, target)


def _draw_tokens(entries: Sequence[Mapping[str, Any]], target: BinaryIO) -> None:
    """How much of each router's choice is told by token, next token, prediction or label; hollow: by chance."""
    kinds = list(dict.fromkeys(name for entry in entries for name in entry["told_by"]))
    with style.figure(figsize=(style.NARROW, 1.2 + 0.26 * len(entries))) as (drawn, axes):
        for number, kind in enumerate(kinds):
            colour = style.COLOURS[number % len(style.COLOURS)]
            told = [(place, entry["told_by"].get(kind)) for place, entry in enumerate(entries)]
            there = [(place, found) for place, found in told if found is not None]
            at = [place + 0.14 * (number - (len(kinds) - 1) / 2) for place, _ in there]
            share = drawable.numbers([found["share"] for _, found in there])
            chance = drawable.numbers([found["by_chance"] for _, found in there])
            axes.plot(share, at, "o", color=colour, markersize=4.5, label=drawable.text(kind, 16))
            axes.plot(chance, at, "o", color=colour, markersize=4.5, markerfacecolor="none")
        axes.set_yticks(range(len(entries)), [drawable.text(entry["name"], 24) for entry in entries])
        axes.set_ylim(len(entries) - 0.5, -0.5)
        axes.set_xlim(-0.03, 1.03)
        axes.set_xlabel("share of the choice that is told; hollow: by chance")
        drawn.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=min(4, len(kinds)))
        style.save(drawn, target)


def _draw_coactivation(report: Mapping[str, Any], target: BinaryIO) -> None:
    matrix = np.array(report["coactivation"], dtype=np.float64)
    np.fill_diagonal(matrix, np.nan)
    names = [drawable.text(entry["name"], 24) for entry in report["routers"]]
    with style.figure(figsize=(style.NARROW, 1.4 + 0.2 * len(names))) as (drawn, axes):
        shown = axes.imshow(matrix, cmap="viridis", vmin=0, vmax=1, aspect="auto")
        axes.grid(False)
        axes.set_yticks(range(len(names)), names, fontsize=8 if len(names) > 8 else 10)
        axes.set_xticks([])
        axes.set_xlabel("the same routers in the same order")
        bar = drawn.colorbar(shown, ax=axes, location="top", shrink=0.9, aspect=30)
        bar.set_label("0: independent, 1: one tells the other")
        style.save(drawn, target)


def _draw_saturation(report: Mapping[str, Any], target: BinaryIO) -> None:
    """Mean over the routers of a layer: the share of tokens that choose as in the network that is looked into."""
    layers = sorted({entry["layer"] for entry in report["routers"]})
    steps = [found["step"] for found in report["saturation"]]
    with style.figure(figsize=(style.NARROW, 3.2)) as (drawn, axes):
        for number, layer in enumerate(layers):
            of = [entry["name"] for entry in report["routers"] if entry["layer"] == layer]
            colour = style.COLOURS[number % len(style.COLOURS)]
            for key, form in (("share", "o-"), ("by_chance", ":")):
                means = [
                    np.mean([found["routers"][name][key] for name in of]) for found in report["saturation"]
                ]
                label = f"layer {layer}" if key == "share" else None
                axes.plot(steps, means, form, color=colour, markersize=4, label=label)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("step of the checkpoint")
        axes.set_ylabel("tokens that choose as now")
        axes.set_title("dotted: by chance", fontsize=10)
        drawn.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4)
        style.save(drawn, target)


def _draw_retention(report: Mapping[str, Any], target: BinaryIO) -> None:
    kept = [found["kept"] for found in report["retention"]]
    n = max(entry["n_choices"] for entry in report["routers"])
    with style.figure(figsize=(style.NARROW, 3.2)) as (drawn, axes):
        axes.axhspan(0, report["margin"], color=NONE, alpha=0.14, linewidth=0)
        for found in report["retention"]:
            axes.plot([found["kept"]] * 2, drawable.numbers(found["interval"]), color=NONE, linewidth=1.8)
        axes.plot(
            [*kept, n], [*drawable.numbers([f["cost"] for f in report["retention"]]), 0.0], "o-", color=NONE
        )
        axes.set_xticks(range(1, n + 1))
        axes.set_xlabel("most used choices that every router keeps")
        axes.set_ylabel("loss above its own, nats")
        axes.set_title(f"band: the margin of {report['margin']:g}", fontsize=10)
        style.save(drawn, target)
