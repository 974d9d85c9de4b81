"""The picture and the tables of ``app crystallize``, from its figures alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from rich import box
from rich.console import Group
from rich.table import Table

from app.analysis import drawable
from app.analysis.crystallize_statistics import ENOUGH
from app.analysis.style import COLOURS, figure, save

NOT_APPLICABLE = "n/a"
EXPLANATION = (
    "Top key: the one position with the largest attention weight. Residual: what its value leaves out of the "
    "attention's output. Direction: a fixed unit vector of a head's output, at right angles to the others."
)
#: heads beyond this are left to the JSON file
MAX_HEADS_SHOWN = 48
MAX_VERDICT = 300  # characters
ENOUGH_COLOUR = "#555555"
#: columns of a terminal from which there is room for the perplexity of each form, and for its interval too
NARROW, WIDE = 76, 100


def mode_table(summary: Mapping[str, Any], width: int = 80) -> Table:
    """Perplexity, what it costs and what of the top key's loss it recovers, for every form of attention.

    Args:
        summary: of :func:`app.analysis.crystallize.summarise`.
        width: columns; a narrow table says what a form costs without saying its perplexity.
    """
    table = _table(
        f"{_layers(summary['spectrum']['layers']).capitalize()} of {summary['n_layers']}, perplexity per "
        f"{summary['unit']} on {summary['n_blocks']} blocks of {summary['seq_len']} {summary['unit']}s of "
        f"{summary['text']}, with 95 % block-bootstrap intervals"
    )
    bootstrap = summary["bootstrap"]
    if bootstrap["n_free"] > 0:
        table.caption = (
            f"In {bootstrap['n_free'] / bootstrap['n_draws']:.1%} of the bootstrap draws the top key costs less than "
            "0.1 %; a recovered share is not defined there, and has no interval where these are 5 % and more."
        )
        table.caption_justify = "left"
    table.add_column("attention in these layers")
    has_perplexity, has_interval = width >= NARROW, width >= WIDE
    for name in ("perplexity", *(["interval"] if has_interval else [])) if has_perplexity else ():
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("Δ, interval", "recovered"):
        table.add_column(name, justify="right", no_wrap=True)

    def row(label: str, entry: Mapping[str, Any], *cells: str) -> None:
        perplexity = [f"{entry['perplexity']:.3f}", _interval(entry["perplexity_interval"], 3)]
        table.add_row(label, *perplexity[: has_perplexity + has_interval], *cells)

    row("the network as it is", summary["baseline"])
    before = None
    for entry in summary["modes"]:
        if before != entry["mode"]:
            table.add_section()
        before = entry["mode"]
        cost = f"{_number(entry['delta'], 3, '+')}  {_interval(entry['delta_interval'], 3, '+')}"
        share, ends = entry["recovered"], entry["recovered_interval"]
        said = NOT_APPLICABLE if share is None else f"{share:.0f} %"
        row(
            entry["label"], entry, cost, f"{said} {NOT_APPLICABLE if ends is None else _interval(ends, 0):>8}"
        )
    return table


def _table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD, pad_edge=False,
        show_edge=False, header_style="bold", padding=(0, 1, 0, 0),
    )  # fmt: skip


def spectrum_table(summary: Mapping[str, Any]) -> Group:
    """Share of the residual's energy in the first modes, by layer and head."""
    spectrum = summary["spectrum"]
    table = _table(
        f"Share of the residual's energy in its first r of {spectrum['d_head']} modes "
        f"({spectrum['calibration_tokens']:,} calibration tokens)"
    )
    table.add_column("layer.head")
    ranks = list(spectrum["share_at"])
    for rank in ranks:
        table.add_column(f"r = {rank}", justify="right")
    table.add_column("r90", justify="right")
    heads = [
        (i, layer, head)
        for i, layer in enumerate(spectrum["layers"])
        for head in range(len(spectrum["r90"][i]))
    ]
    for i, layer, head in heads[:MAX_HEADS_SHOWN]:
        shares = (f"{spectrum['share_at'][rank][i][head]:.1%}" for rank in ranks)
        table.add_row(f"{layer}.{head}", *shares, str(spectrum["r90"][i][head]))
    table.add_section()
    means = (f"{np.mean(spectrum['share_at'][rank]):.1%}" for rank in ranks)
    table.add_row("mean", *means, f"{spectrum['mean_r90']:.1f}")
    notes = [f"r90, the modes that hold 90 %: mean {spectrum['mean_r90']:.1f} of {spectrum['d_head']}"]
    if len(heads) > MAX_HEADS_SHOWN:
        notes.insert(0, f"{len(heads) - MAX_HEADS_SHOWN} more heads are in the JSON file")
    return Group(table, *notes)


def draw(summary: Mapping[str, Any], target: Path | BinaryIO) -> None:
    """Cost against rank, recovery against rank, and the spectrum of each layer, side by side.

    Args:
        summary: of :func:`app.analysis.crystallize.summarise`.
        target: PNG file to write, or to write into.
    """
    unit, model, text = (drawable.text(summary[key]) for key in ("unit", "model", "text"))
    verdict = drawable.text(summary["verdict"]["text"], MAX_VERDICT)
    with figure(ncols=3, figsize=(15.0, 5.8)) as (drawn, (cost, recovery, spectrum)):
        top1 = next(entry for entry in summary["modes"] if entry["mode"] == "top1")
        is_known = top1["recovered"] is not None and drawable.number(top1["delta"]) is not None
        enough = (1 - ENOUGH / 100) * top1["delta"] if is_known else None
        _draw_against_rank(cost, summary, "delta", "delta_interval", enough)
        cost.set(
            ylabel=f"perplexity per {unit}, above the network's own",
            title="What each form of attention costs",
        )
        drawn.legend(*cost.get_legend_handles_labels(), loc="outside lower left", ncols=3, fontsize=9)
        if any(entry["recovered"] is None for entry in summary["modes"]):
            recovery.text(
                0.5, 0.5, "the top key alone costs\nless than 0.1 %: nothing to recover",
                ha="center", va="center", transform=recovery.transAxes,
            )  # fmt: skip
            recovery.set_axis_off()
        else:
            _draw_against_rank(recovery, summary, "recovered", "recovered_interval", ENOUGH)
            recovery.set(
                ylabel="recovered, % of what the top key alone loses", title="How much of that comes back"
            )
        _draw_spectrum(spectrum, summary["spectrum"])
        drawn.suptitle(
            f"{model} with the attention of {_layers(summary['spectrum']['layers'])} of "
            f"{summary['n_layers']} exchanged; its own perplexity is {summary['baseline']['perplexity']:.2f} per "
            f"{unit}, on {text}\n{verdict}\n{EXPLANATION}",
            fontsize=10.5, x=0.01, ha="left", linespacing=1.45,
        )  # fmt: skip
        save(drawn, target)


def _draw_against_rank(
    axes: Any, summary: Mapping[str, Any], key: str, interval: str, enough: float | None
) -> None:
    """Calibrated and random directions as curves over rank with their intervals, numbers of keys as levels.

    Args:
        axes: of the plotting library.
        summary: as of :func:`draw`.
        key: of what is drawn.
        interval: key of its interval.
        enough: where 90 % are recovered; None where that says nothing.
    """
    curves = (
        (
            "lowrank",
            "top key + residual in r directions of most energy (bands: 95 % bootstrap)",
            COLOURS[0],
            "-",
        ),
        ("random", "top key + residual in r random directions", COLOURS[1], "--"),
    )
    ranks: list[int] = []
    for mode, label, colour, line in curves:
        entries = sorted((e for e in summary["modes"] if e["mode"] == mode), key=lambda e: e["rank"])
        ranks = [entry["rank"] for entry in entries]
        if all(entry[interval] is not None for entry in entries):
            low, high = drawable.numbers([entry[interval] for entry in entries]).T
            axes.fill_between(ranks, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(
            ranks,
            drawable.numbers([entry[key] for entry in entries]),
            line,
            color=colour,
            marker="o",
            markersize=4,
            label=label,
        )
    levels = [e for e in summary["modes"] if e["mode"] == "topk" and drawable.number(e[key]) is not None]
    for number, entry in enumerate(levels):
        named = {"label": "softmax over the best k keys, nothing else"} if number == 0 else {}
        axes.axhline(entry[key], color=COLOURS[2], linestyle=":", linewidth=1.2, **named)
    named_levels = [(entry[key], _keys(entry["top_k"]), COLOURS[2]) for entry in levels]
    if enough is not None:
        axes.axhline(enough, color=ENOUGH_COLOUR, linewidth=1, zorder=1)
        named_levels.append((enough, f"{ENOUGH:.0f} % recovered", ENOUGH_COLOUR))
    _name_levels(axes, named_levels)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    # Room at the right for the names of the levels.
    axes.set_xlim(ranks[0] / 1.25, ranks[-1] * (ranks[-1] / ranks[0]) ** 0.3 * 1.4)
    axes.set_xlabel(f"directions r kept, of {summary['spectrum']['d_head']} per head")


def _keys(k: int) -> str:
    return "top key alone" if k == 1 else f"k = {k}"


def _name_levels(axes: Any, levels: list[tuple[float, str, str]]) -> None:
    """Writes names at the right end of horizontal lines, beyond all points; those too close move apart."""
    low, high = axes.get_ylim()
    least = 0.05 * (high - low)
    place = -np.inf
    for value, name, colour in sorted(levels):
        place = max(value, place + least)
        axes.annotate(name, (1, place), (-2, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                      ha="right", va="center", color=colour, fontsize=9, annotation_clip=False,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0})  # fmt: skip


def _draw_spectrum(axes: Any, spectrum: Mapping[str, Any]) -> None:
    """Cumulative share of the residual's energy over modes: a line per layer, a band over its heads."""
    d_head = spectrum["d_head"]
    modes = np.arange(d_head + 1)
    for i, layer in enumerate(spectrum["layers"]):
        shares = 100 * np.insert(drawable.numbers(spectrum["cumulative"][i]), 0, 0.0, axis=1)  # (H, d + 1)
        colour = COLOURS[i % len(COLOURS)]
        axes.fill_between(modes, shares.min(0), shares.max(0), color=colour, alpha=0.12, linewidth=0)
        r90 = np.mean(spectrum["r90"][i])
        axes.plot(modes, shares.mean(0), color=colour, label=f"layer {layer}: 90 % at {r90:.1f}")
    axes.plot(
        modes, 100 * modes / d_head, color="#666666", linestyle="--", linewidth=1, label="random directions"
    )
    axes.axhline(ENOUGH, color=ENOUGH_COLOUR, linewidth=1, zorder=1)
    axes.annotate(f"{ENOUGH:.0f} % of the energy", (0.5, ENOUGH), (0, -4), xycoords=("axes fraction", "data"),
                  textcoords="offset points", color=ENOUGH_COLOUR, fontsize=9, va="top")  # fmt: skip
    axes.set(xlabel=f"directions r, of {d_head} (lines: mean of heads; bands: all)",
             ylabel="share of the residual's energy, %", title="How few directions hold the residual",
             xlim=(0, d_head), ylim=(0, 101))  # fmt: skip
    axes.legend(fontsize=8.5, loc="lower right")


def _interval(ends: list[float], digits: int, sign: str = "") -> str:
    return "…".join(_number(end, digits, sign) for end in ends)


def _number(value: float, digits: int, sign: str = "") -> str:
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # + 0.0: no minus before a zero


def _layers(layers: list[int]) -> str:
    if len(layers) > 2 and layers == list(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]}–{layers[-1]}"
    return f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"
