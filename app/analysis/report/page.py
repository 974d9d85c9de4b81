"""The report: what was trained, how it went, what it looked like inside, and with what it was made."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from app.analysis.comparison import Comparison, Group
from app.analysis.comparison_figure import SMOOTHED_SHARE, Curve, curve_of
from app.analysis.html import Markup, element, escaped, page, png_image, table
from app.analysis.report import chart
from app.analysis.report.chart import Line, line_chart
from app.analysis.report.findings import findings
from app.analysis.report.material import Material

# What is quoted is bounded, so that a page of many runs still opens at once.
MAX_FIGURE_BYTES, MAX_RUNS_WITH_FIGURES = 12 * 2**20, 6
MAX_CELL, MAX_SAMPLE, MAX_SAMPLES_PER_KEY = 400, 4000, 4
MAX_LAUNCHES = 12
FIGURES = {
    "val/loss": ("validation loss", "nats per token"),
    "val/bpb": ("validation", "bits per byte"),
    "best/val_loss": ("best validation", "nats per token"),
    "best/step": ("best validation at step", ""),
    "train/loss": ("training loss", "nats per token"),
    "tokens_seen": ("tokens seen", ""),
    "speed/seconds": ("training time", "s"),
    "tokens_per_second": ("tokens per second", ""),
    "parameters": ("parameters", ""),
}
WHOLE = frozenset({"best/step", "tokens_seen", "tokens_per_second", "parameters", "speed/seconds"})


def report(
    comparison: Comparison, materials: Mapping[str, Material], notes: Sequence[str], version: str
) -> str:
    """The page.

    Args:
        comparison: of all runs; of one run, one group.
        materials: path of a run to what it has left.
        notes: what a reader should know of the reading itself.
        version: of the program.
    """
    groups = comparison.groups
    is_single = len(materials) == 1
    title = _title(groups, materials)
    body = [element("h1", title), _subtitle(groups, materials)]
    body += _section("Results", _results(comparison, is_single))
    if len(groups) > 1:
        body += _section("What differs", _differences(comparison))
    body += _section("Curves", _curves(comparison, is_single))
    body += _section("Health", findings(materials))
    body += _section("Inside the network", _figures(groups, materials))
    body += _section("Text samples", _samples(groups, materials))
    body += _section("Configuration", _configurations(groups, materials))
    body += _section("Environment", _environments(materials))
    if notes:
        body += _section("Notes", [element("ul", *(element("li", note) for note in notes))])
    body.append(element("p", f"archlab {version}, app report", class_="soft"))
    return page(f"Report: {title}", body, style=chart.STYLE)


def _title(groups: Sequence[Group], materials: Mapping[str, Material]) -> str:
    if len(groups) > 1:
        return f"{len(materials)} runs in {len(groups)} groups"
    model = str(groups[0].runs[0].configuration.get("model.class_path", "")).rpartition(".")[2]
    name = ", ".join(filter(None, (model.removesuffix("Module"), groups[0].label)))
    return f"{name}: {len(materials)} runs" if len(materials) > 1 else name


def _section(title: str, parts: Sequence[Markup]) -> list[Markup]:
    return [element("section", element("h2", title), *parts)] if parts else []


def _subtitle(groups: Sequence[Group], materials: Mapping[str, Material]) -> Markup:
    states = []
    for material in materials.values():
        run = material.run
        reason = f" ({material.status['reason']})" if material.status.get("reason") else ""
        states.append(f"{run.path}: {run.state} at step {run.last_step:,}{reason}")
    if len(states) == 1:
        return element("p", states[0], class_="soft")
    rows = [
        [chart.key(number, group.letter) if index == 0 else "", group.label if index == 0 else "",
         run.path, run.seed, f"{run.state} at step {run.last_step:,}"]
        for number, group in enumerate(groups)
        for index, run in enumerate(group.runs)
    ]  # fmt: skip
    return table(["", "group", "run", "seed", "state"], rows)


def _results(comparison: Comparison, is_single: bool) -> list[Markup]:
    groups = [(group, group.figures()) for group in comparison.groups]
    keys = [key for key in FIGURES if any(key in figures for _, figures in groups)]
    if not keys:
        return [element("p", "Nothing logged yet.", class_="soft")]
    rows = []
    for key in keys:
        name, unit = FIGURES[key]
        cells = []
        for _, figures in groups:
            spread = figures.get(key)
            if spread is None:
                cells.append("–")
                continue
            digits = ",.0f" if key in WHOLE else ".4f"
            cells.append(
                f"{spread.mean:{digits}}"
                + (f" ± {spread.sd:{digits}}" if spread.n > 1 and (spread.sd or key not in WHOLE) else "")
            )
        rows.append([f"{name}, {unit}" if unit else name, *cells])
    if is_single:
        summary = comparison.groups[0].runs[0].summary
        for key, name, digits in (
            ("baseline/bigram_loss", "for comparison: an add-one bigram of the same text, nats per token", ".4f"),
            ("samples/known_word_share", "generated words of four letters and more that the text contains", ".0%"),
        ):  # fmt: skip
            if isinstance(summary.get(key), int | float):
                rows.append([name, f"{summary[key]:{digits}}"])
    several = any(len(group.runs) > 1 for group, _ in groups)
    header: list[object] = [""]
    for number, (group, _) in enumerate(groups):
        header.append("" if is_single else chart.key(number, f"{group.letter} (n = {len(group.runs)})"))
    parts = [table(header, rows, numbers=range(1, len(header)))]
    if several:
        parts.append(element("p", "Mean ± sample standard deviation over seeds.", class_="soft"))
    return parts


def _differences(comparison: Comparison) -> list[Markup]:
    if not comparison.differences:
        return [element("p", "No setting; the groups have come to different steps.", class_="soft")]
    header = ["setting", *(group.letter for group in comparison.groups)]
    rows = [
        [element("code", key), *("–" if value is None else _cut(value) for value in values)]
        for key, values in comparison.differences.items()
    ]
    return [table(header, rows)]


def _curves(comparison: Comparison, is_single: bool) -> list[Markup]:
    unit = "nats per token" if comparison.loss_key == "val/loss" else "bits per byte"
    train_key = comparison.loss_key.replace("val/", "train/")
    panels = []
    for x_key, label, log_x in (
        ("tokens_seen", "tokens seen", True),
        ("speed/seconds", "seconds of training, without validation", False),
    ):
        lines = []
        for number, group in enumerate(comparison.groups):
            colours = (0, 1) if is_single else (number, number)
            training = curve_of(group.runs, x_key, train_key, SMOOTHED_SHARE)
            validation = curve_of(group.runs, x_key, comparison.loss_key)
            lines.append(_line(training, colours[0], is_main=False))
            lines.append(_line(validation, colours[1], is_main=True))
        panels.append(element("div", line_chart(lines, label, f"loss, {unit}", log_x)))
    if is_single:
        legend = [chart.key(0, "training (smoothed)"), chart.key(1, "validation")]
    else:
        legend = [chart.key(number, group.name) for number, group in enumerate(comparison.groups)]
        legend.append(escaped("thick with dots: validation; thin: training, smoothed"))
        if any(len(group.runs) > 1 for group in comparison.groups):
            legend.append(escaped("band: ± one standard deviation over seeds"))
    spaced = [Markup(f"<span>{entry}</span> &emsp; ") for entry in legend]
    return [element("p", *spaced, class_="soft"), element("div", *panels, class_="charts")]


def _line(curve: Curve, colour: int, is_main: bool) -> Line:
    spread = curve.sd if len(curve.sd) and np.any(curve.sd) else None
    dash = "6 3" if colour >= chart.N_COLOURS else ""
    return Line(curve.x, curve.mean, colour, spread if is_main else None, is_main, dash)


def _first_runs(
    groups: Sequence[Group], materials: Mapping[str, Material]
) -> Iterator[tuple[Group, Material]]:
    """The first run of each group stands for it."""
    for group in groups:
        yield group, materials[group.runs[0].path]


def _heading(group: Group, material: Material, is_only: bool) -> list[Markup]:
    return [] if is_only else [element("h3", f"{group.letter}  {group.label}, seed {material.run.seed}")]


def _figures(groups: Sequence[Group], materials: Mapping[str, Material]) -> list[Markup]:
    parts: list[Markup] = []
    n_bytes, n_left_out = 0, 0
    for number, (group, material) in enumerate(_first_runs(groups, materials)):
        images = []
        for name, content in material.figures.items():
            n_bytes += len(content)
            if number >= MAX_RUNS_WITH_FIGURES or n_bytes > MAX_FIGURE_BYTES:
                n_left_out += 1
            else:
                images.append(element("p", png_image(content, name)))
        if images:
            parts += [*_heading(group, material, len(groups) == 1), *images]
    if n_left_out:
        parts.append(element("p", f"{n_left_out} more in the figures/ of the runs.", class_="soft"))
    if not parts:
        parts = [element("p", "No figures: they are drawn at validations by callbacks.DepthTimeFigures, for networks "
                         "that report something by layer.", class_="soft")]  # fmt: skip
    return parts


def _samples(groups: Sequence[Group], materials: Mapping[str, Material]) -> list[Markup]:
    parts: list[Markup] = []
    for group, material in _first_runs(groups, materials):
        by_key: dict[str, list[dict[str, Any]]] = {}
        for sample in material.samples:
            by_key.setdefault(sample["key"], []).append(sample)
        shown = []
        for own in by_key.values():
            picked = [own[0], *own[1:][-(MAX_SAMPLES_PER_KEY - 1) :]]
            for sample in reversed(picked):
                label = f"after step {sample['step']:,}" + (f", {sample['key']}" if len(by_key) > 1 else "")
                text = _cut(sample.get("text", ""), MAX_SAMPLE)
                shown += [element("div", label, class_="soft"), element("pre", text)]
        if shown:
            parts += [*_heading(group, material, len(groups) == 1), *shown]
    return parts or [element("p", "None: callbacks.TextSamples writes them at validations.", class_="soft")]


def _configurations(groups: Sequence[Group], materials: Mapping[str, Material]) -> list[Markup]:
    parts = []
    for group, material in _first_runs(groups, materials):
        rows = [
            [element("code", key), _cut(value)]
            for key, value in material.run.configuration.items()
            if value is not None
        ]
        label = "all settings" if len(groups) == 1 else f"{group.letter}  {group.label}"
        parts.append(element("details", element("summary", label), table(["setting", "value"], rows)))
    return parts


def _environments(materials: Mapping[str, Material]) -> list[Markup]:
    parts = []
    for material in materials.values():
        rows = [_launch(number, launch) for number, launch in enumerate(material.launches, 1)]
        if not rows:
            continue
        shown = table(["launch", "when", "where", "with", "command"], rows[-MAX_LAUNCHES:])
        label = f"{material.run.path}: {len(rows)} launch" + ("es" if len(rows) > 1 else "")
        attributes = {"open": "open"} if len(materials) == 1 else {}
        parts.append(element("details", element("summary", label), shown, **attributes))
    return parts or [element("p", "run.json does not say.", class_="soft")]


def _launch(number: int, launch: Mapping[str, Any]) -> list[object]:
    packages = launch.get("packages")
    known = packages if isinstance(packages, Mapping) else {}
    versions = ", ".join(
        f"{name} {known[name]}" for name in ("torch", "lightning", "numpy") if known.get(name)
    )
    source = f"commit {str(launch.get('commit'))[:12]}" if launch.get("commit") else "no repository"
    if launch.get("source_diff_sha256"):
        source += " with changes (source.diff)"
    command = launch.get("command")
    words = " ".join(map(str, command)) if isinstance(command, list) else str(command)
    changes = launch.get("changes")
    notes = [f"resumed from {launch['resumed_from']}"] if launch.get("resumed_from") else []
    notes += [f"changed {change}" for change in changes] if isinstance(changes, list) else []
    where = f"{launch.get('host', '')}, {launch.get('device', '')}, world size {launch.get('world_size', '')}"
    what = f"Python {launch.get('python', '')}, {versions}; {source}"
    return [
        number,
        launch.get("time", ""),
        _cut(where),
        _cut(what),
        element("code", _cut("; ".join([words, *notes]))),
    ]


def _cut(value: object, limit: int = MAX_CELL) -> str:
    """A value as text of bounded length."""
    text = str(value)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text):,} characters)"
