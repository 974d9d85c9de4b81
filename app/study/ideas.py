"""Every idea that the studies are about, and what is known of it.

An idea is a label of a study: what it changes, at which price, and what that is worth are told from the study's file
and its ``results.json``, and stand nowhere else.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from app.study.plan import Row, Study, as_text

TITLES = ("idea", "what it changes", "parameters", "memory", "seconds", "loss", "compute", "gains", "loses")
NOT_RUN = "not run"
NOTHING = "–"


def markdown(studies: Sequence[Study], reports: Mapping[str, Mapping[str, Any]]) -> str:
    """The page of all ideas.

    Args:
        studies: with their rows; one whose rows are sizes of one network has no ideas.
        reports: of :func:`app.study.results.results`, by the name of their study; missing where it was not run.
    """
    lines = [
        "# Ideas",
        "",
        "Written by `app study --ideas`, from the files of the studies and their results; nothing is written by hand. "
        "Prices are shares of the baseline's, of finished runs; seconds are of runs that may have shared a device. "
        "Verdicts are corrected for their number and hold at the margin, the size and the length of their study alone.",
    ]
    for study in studies:
        labels = _ideas(study)
        if not labels:
            continue
        report = reports.get(study.name)
        lines += [
            "",
            f"## {study.name}",
            "",
            study.headline + f", against `{study.against}`. {_made(report)}",
            "",
        ]
        lines += ["| " + " | ".join(TITLES) + " |", "| --- " * len(TITLES) + "|"]
        lines += ["| " + " | ".join(_cells(study, label, report)) + " |" for label in labels]
    return "\n".join(lines) + "\n"


def _ideas(study: Study) -> list[str]:
    """Labels of the rows that are compared with a row of another label."""
    compared = ((row, study.base_of(row)) for row in study.rows)
    return list(dict.fromkeys(row.label for row, base in compared if base and base.label != row.label))


def _made(report: Mapping[str, Any] | None) -> str:
    if report is None:
        return f"{NOT_RUN.capitalize()}."
    rows = report["rows"].values()
    devices = sorted({str(origin.get("device")) for row in rows for origin in row.get("made_with", [])})
    n_runs, n_done = sum(row["n_planned"] for row in rows), sum(len(row["figures"]) for row in rows)
    page = f"[Page]({report['study']}/results.md)"
    return f"{page}: {n_done} of {n_runs} runs, margin {report['margin']:g}, {', '.join(devices) or 'no device'}."


def _cells(study: Study, label: str, report: Mapping[str, Any] | None) -> list[str]:
    rows = [row for row in study.rows if row.label == label]
    pairs = [(row, base) for row in rows if (base := study.base_of(row)) is not None]
    changes = _changes(*pairs[0])
    found = {} if report is None else report["rows"]
    known = [
        (found[row.name], found[base.name])
        for row, base in pairs
        if all(found.get(one.name, {}).get("figures") for one in (row, base))
    ]
    if not known:
        return [label, changes, NOT_RUN, *[NOTHING] * (len(TITLES) - 3)]
    return [
        label,
        changes,
        _share(known, lambda row: row.get("parameters")),
        _share(known, lambda row: row["times"].get("peak_bytes")),
        _share(known, lambda row: row["times"].get("seconds")),
        _worth([this for this, _ in known], len(pairs)),
        _compute(known[0][0]),
        _tasks([this for this, _ in known], "better"),
        _tasks([this for this, _ in known], "worse"),
    ]


def _changes(row: Row, base: Row) -> str:
    """What a row has that its base has not; what both of a study's variant have is no part of it."""
    configs = [Path(config).stem for config in row.configs if config not in base.configs]
    values = {key: value for key, value in row.values.items() if base.values.get(key) != value}
    lacks = [Path(config).stem for config in base.configs if config not in row.configs and not configs]
    lacks += [key.rpartition(".")[2] for key in base.values if key not in row.values]
    said = [f"{key.rpartition('.')[2]} {as_text(value)}" for key, value in values.items()]
    return ", ".join([*configs, *said, *(f"without {name}" for name in lacks)])


def _share(known: Sequence[tuple[Any, Any]], of: Callable[[Any], float | None]) -> str:
    """A price as a share of the base's, the geometric mean over variants."""
    pairs = [(of(this), of(base)) for this, base in known]
    shares = [this / base for this, base in pairs if this and base]
    return f"× {np.exp(np.mean(np.log(shares))):.3g}" if shares else NOTHING


def _worth(rows: Sequence[Any], n_planned: int) -> str:
    """The verdict, with its difference where there is one row, by count where there are several."""
    verdicts = [(row.get("comparison") or {}).get("verdict", "too few seeds") for row in rows]
    if n_planned > 1:
        counts = ", ".join(f"{verdict} {n}" for verdict, n in Counter(verdicts).most_common())
        return counts + (f", {NOT_RUN} {n_planned - len(rows)}" if n_planned > len(rows) else "")
    if "comparison" not in rows[0]:
        return verdicts[0]
    low, high = rows[0]["comparison"]["interval"]
    return f"{verdicts[0]}, {rows[0]['comparison']['difference']:+.4f} ({low:+.4f} to {high:+.4f})"


def _compute(row: Any) -> str:
    worth = row.get("multiplier")
    return NOTHING if worth is None else f"× {worth['value']} ({worth['range']})"


def _tasks(rows: Sequence[Any], verdict: str) -> str:
    named = [
        row["task"] for row in rows if row.get("task") and row.get("comparison", {}).get("verdict") == verdict
    ]
    return ", ".join(named) or NOTHING
