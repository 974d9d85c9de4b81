"""A study's results as a table for people, as CSV, and as a picture."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

from app.analysis import drawable, style
from app.study.compute_picture import draw_compute, has_ladder
from app.study.skills import draw_difficulty, draw_state, tasks_of
from app.study.statistics import FEWEST_SEEDS

#: what each picture asks
TITLES = {
    "results.png": "Which rows are better, and by how much?",
    "compute.png": "What is each row worth in compute?",
    "skills.png": "How does the accuracy fall with difficulty?",
    "state.png": "Does memory buy accuracy?",
}
VERDICTS = {
    "better": "Better by the margin at least",
    "worse": "Worse by the margin at least",
    "equivalent": "Equivalent, within the margin",
    "undecided": "Undecided, which is no claim that rows are alike",
}
#: how a run stands that nobody has begun
WAITING = "waiting"


def pictures_of(report: Mapping[str, Any]) -> dict[str, Callable[[Mapping[str, Any], BinaryIO], None]]:
    """File to what draws it, of the pictures that this study has something for."""
    found: dict[str, Callable[[Mapping[str, Any], BinaryIO], None]] = {}
    if any(row["figures"] for row in report["rows"].values()):
        found["results.png"] = draw
    if has_ladder(report):
        found["compute.png"] = draw_compute
    if tasks_of(report):
        found |= {"skills.png": draw_difficulty, "state.png": draw_state}
    return found


def markdown(report: Mapping[str, Any], pictures: Sequence[str] = ()) -> str:
    """The page of a study.

    Args:
        report: of :func:`app.study.results.results`.
        pictures: files of the pictures beside it.
    """
    rows = report["rows"]
    whole = {name: row for name, row in rows.items() if row["figures"]}
    columns = _columns(report, whole) or {report["decides"]: str}
    about = report["about"].replace("<", "&lt;")  # a page would take <unk> for a mark of its own
    lines = [f"# {report['headline']}", "", *([about, ""] if about else [])]
    lines += [f"`app study {report['study']}` runs it, or goes on with it, and writes this page.", ""]
    lines += ["| row | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        cells = [write(row) for write in columns.values()] if row["figures"] else ["not run"]
        lines.append(f"| {name} | " + " | ".join(cells + ["–"] * (len(columns) - len(cells))) + " |")
    lines += ["", *_verdicts(report), *_missing(rows), *_notes(report, whole)]
    for picture in pictures:
        lines += ["", f"## {TITLES[picture]}", "", f"![{TITLES[picture]}]({picture})"]
    return "\n".join(lines) + "\n"


def table(report: Mapping[str, Any]) -> str:
    """The rows as CSV, every figure of every seed in a column of its own."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    seeds = [str(seed) for seed in report["seeds"]]
    head = [
        "row",
        "n",
        "mean",
        "sd",
        "low",
        "high",
        "verdict",
        "p",
        "parameters",
        "tokens",
        "flops",
        "bits_per_byte",
    ]
    writer.writerow([*head, "state_bytes", "seconds", *(f"seed_{seed}" for seed in seeds)])
    for name, row in report["rows"].items():
        low, high = row.get("interval") or (None, None)
        compared = row.get("comparison") or {}
        figures = row["figures"]
        values = [
            name,
            len(figures),
            row.get("mean"),
            row.get("sd"),
            low,
            high,
            compared.get("verdict"),
            compared.get("p"),
        ]
        values += [
            row.get(key) for key in ("parameters", "tokens_seen", "flops", "bits_per_byte", "state_bytes")
        ]
        writer.writerow(
            [*values, (row.get("times") or {}).get("seconds"), *(figures.get(seed) for seed in seeds)]
        )
    return out.getvalue()


def draw(report: Mapping[str, Any], target: BinaryIO) -> None:
    """Which rows are better: the mean of each with its interval, every seed as a dot, and the margin as a band."""
    rows = {name: row for name, row in report["rows"].items() if row["figures"]}
    with style.figure(figsize=(style.NARROW, 1.2 + 0.42 * len(rows))) as (drawn, axes):
        bases = {row["against"] for row in rows.values() if row.get("against")}
        base = rows[bases.pop()] if len(bases) == 1 else None
        if base is not None:
            edges = (base["mean"] - report["margin"], base["mean"] + report["margin"])
            axes.axvspan(*edges, color="#0072B2", alpha=0.12, linewidth=0)
        for place, (name, row) in enumerate(rows.items()):
            # Above its line: beside it a long name would leave no room on a phone.
            written = {"transform": axes.get_yaxis_transform(), "fontsize": 9, "va": "bottom"}
            axes.text(0.01, place - 0.12, drawable.text(name, 60), **written)
            if row.get("interval"):
                axes.plot(row["interval"], [place, place], color=style.COLOURS[0], linewidth=1.6)
            axes.plot([row["mean"]], [place], "|", color=style.COLOURS[0], markersize=12, markeredgewidth=2)
            figures = list(row["figures"].values())
            axes.plot(figures, [place] * len(figures), "o", color="#777777", markersize=4, zorder=3)
        axes.set_yticks([])
        axes.set_ylim(len(rows) - 0.4, -0.9)
        axes.set_xlabel(report["decides"])
        band = f"\nband: ± {report['margin']:g} around {drawable.text(report['against'], 40)}" if base else ""
        axes.set_title(f"dots: seeds; bar: mean and 95 % interval{band}", fontsize=9)
        style.save(drawn, target)


def _columns(report: Mapping[str, Any], rows: Mapping[str, Any]) -> dict[str, Any]:
    """Title to what writes a row's cell; those that no row fills are left out."""

    def number(key: str, form: str) -> Any:
        return lambda row: "–" if row.get(key) is None else format(row[key], form)

    columns: dict[str, Any] = {
        report["decides"]: lambda row: (
            f"{row['mean']:.4f}" + ("" if row["sd"] is None else f" ± {row['sd']:.4f}")
        ),
        "95 % interval": lambda row: (
            "–" if not row.get("interval") else "{:.4f} to {:.4f}".format(*row["interval"])
        ),
        "seeds": lambda row: f"{len(row['figures'])} of {row['n_planned']}",
        f"against {report['against']}": _verdict,
        "compute": lambda row: (
            f"× {row['multiplier']['value']} ({row['multiplier']['range']})" if "multiplier" in row else "–"
        ),
        "bits per byte": number("bits_per_byte", ".4f"),
        "accuracy": number("accuracy", ".2%"),
        "parameters": number("parameters", ",d"),
        "tokens": number("tokens_seen", ",d"),
        "FLOPs": number("flops", ".3g"),
        "state, bytes": number("state_bytes", ",d"),
        "memory, MB": lambda row: (
            "–" if row["times"].get("peak_bytes") is None else f"{row['times']['peak_bytes'] / 1e6:,.0f}"
        ),
        "seconds": lambda row: f"{row['times']['seconds']:.1f}",
        "tokens/s": lambda row: (
            "–" if row["times"]["tokens_per_second"] is None else f"{row['times']['tokens_per_second']:,.0f}"
        ),
    }
    return {
        title: write for title, write in columns.items() if any(write(row) != "–" for row in rows.values())
    }


def _verdict(row: Mapping[str, Any]) -> str:
    found = row.get("comparison")
    if found is None:
        return "–"
    needed = f", {found['seeds']} seeds would decide" if found["seeds"] else ""
    return f"{found['verdict']} ({found['difference']:+.4f}, p {found['p']:.2g}{needed})"


def _verdicts(report: Mapping[str, Any]) -> list[str]:
    """Which rows have which verdict: what did not help is a result like any other."""
    by_verdict: dict[str, list[str]] = {}
    for name, row in report["rows"].items():
        if row.get("comparison"):
            by_verdict.setdefault(row["comparison"]["verdict"], []).append(name)
    return [
        f"- {words}: {', '.join(by_verdict[verdict])}."
        for verdict, words in VERDICTS.items()
        if verdict in by_verdict
    ]


def _missing(rows: Mapping[str, Any]) -> list[str]:
    """Which runs are not finished, and why."""
    found = {
        name: ", ".join(f"seed {seed} {how}" for seed, how in row["unfinished"].items())
        for name, row in rows.items()
        if any(how != WAITING for how in row.get("unfinished", {}).values())
    }
    n_missing = sum(len(row.get("unfinished", {})) for row in rows.values())
    n_runs = sum(row["n_planned"] for row in rows.values())
    lines = [] if not n_missing else [f"- **Not whole: {n_missing} of {n_runs} runs are not finished.**"]
    return lines + [f"- {name}: {said}." for name, said in found.items()]


def _notes(report: Mapping[str, Any], rows: Mapping[str, Any]) -> list[str]:
    """What the table's words mean, and what its numbers were made with."""
    if not rows:
        return ["- No run is finished yet."]
    lines = [
        f"- Less is better; the margin is {report['margin']:g}. Verdicts and p are corrected for their number (Holm)."
    ]
    if report["spread"] is not None:
        spread = report["spread"]
        needed = report["seeds_for_equivalence"] or "more than 1,000"
        lines.append(
            f"- A seed's figure spreads by {spread['sd']:.4f}, pooled over all rows ({spread['degrees']} degrees of "
            f"freedom); equivalence of equal rows takes {needed} seeds each for 80 % power."
        )
        if any(len(row["figures"]) >= FEWEST_SEEDS for row in rows.values()):
            lines.append(
                f"- A row of {FEWEST_SEEDS} seeds and more is judged by the variance of its own (Welch)."
            )
        lines.append(
            "- How far intervals and verdicts hold is tried out by `app study calibrate`, on simulated and real runs; "
            "app/study/README.md has what was found. A seed that falls out, which five seeds need not show, makes them "
            "too narrow."
        )
    if any("multiplier" in row for row in rows.values()):
        passed = [name for name, row in rows.items() if row.get("multiplier", {}).get("excludes_one")]
        lines.append(
            "- Compute: FLOPs that the ladder needs for the row's loss, over the row's; above 1 the row needs less. "
            f"The interval excludes 1 at this size: {', '.join(passed) or 'of no row'}. It takes two sizes to pass."
        )
    lines.append("- Seconds are of the steps of a run; runs that share a device take each other's time.")
    tuned = {name: row["tuned"] for name, row in rows.items() if row["tuned"]}
    lines += [
        f"- {name} was tuned to {', '.join(f'{k} {v}' for k, v in of.items())}." for name, of in tuned.items()
    ]
    origins = [origin for row in rows.values() for origin in row["made_with"]]
    for words, write in ORIGINS.items():
        said = sorted({write(origin) for origin in origins})
        lines.append(f"- {words}: {', '.join(said)}.")
    return lines


def _data(origin: Mapping[str, Any]) -> str:
    data = origin.get("data") or {}
    of = data.get("source") or data.get("task") or data.get("path") or "?"
    tokens = f", {data['train_tokens']:,} tokens to train on" if "train_tokens" in data else ""
    sums = [str(data[key])[:12] for key in ("sha256", "train_sha256", "val_sha256") if data.get(key)]
    return f"{of}{tokens}" + (f", SHA-256 {' and '.join(sums)}" if sums else "")


#: what the numbers were made with: its name, and how it is written
ORIGINS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "data": _data,
    "device": lambda origin: str(origin.get("device")),
    "PyTorch": lambda origin: str(origin.get("torch")),
    "steps": lambda origin: str(origin.get("path")),
    "commit": lambda origin: (
        str(origin.get("commit")) + (", changed" if origin.get("source_diff_sha256") else "")
    ),
}
