"""What the figures of a study come to: means, intervals, verdicts, compute multipliers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from app.run.manifest import launches_of
from app.study.display import said
from app.study.jobs import Job
from app.study.multiplier import FEWEST_RUNGS, Point, is_within_a_decade, multiplier
from app.study.plan import Study
from app.study.statistics import Pooled, interval, pooled, spreads
from app.study.verdicts import Pair, compare, seeds_for_equivalence

#: what stands before the name of a slice
OF_SLICE = "val/accuracy/"


def results(study: Study, jobs: Sequence[Job]) -> dict[str, Any]:
    """Everything that a table of the study says, as plain values.

    What depends on the machine's load stands under ``times`` alone: everything else is the same however often a study
    was stopped and gone on with.

    Args:
        study: what was planned.
        jobs: its seeds' runs; those that are not finished are left out.
    """
    by_row = {row.name: [job for job in jobs if job.row.name == row.name] for row in study.rows}
    found: dict[str, Any] = {name: _row(study, of_row) for name, of_row in by_row.items()}
    figures = {name: list(row["figures"].values()) for name, row in found.items()}
    spread = _spread(figures.values())
    sd = study.pilot_sd if spread is None else spread.sd
    report: dict[str, Any] = {
        "study": study.name,
        "headline": study.headline,
        "about": study.about,
        "decides": study.decides,
        "margin": study.margin,
        "against": study.against,
        "ladder": study.ladder,
        "seeds": list(study.seeds),
        "spread": None if spread is None else {"sd": spread.sd, "degrees": spread.degrees},
        "seeds_for_equivalence": None if sd is None else seeds_for_equivalence(sd, study.margin),
        "rows": found,
    }
    if spread is not None:
        judged = _spread_of_rows(study, figures)
        for name, of_row in judged.items():
            this = found[name]
            this["spread"] = {"sd": of_row.sd, "degrees": of_row.degrees}
            this["interval"] = list(interval(this["mean"], len(this["figures"]), of_row))
        _compare(study, found, judged)
        _multiply(study, found)
    return report


def _spread_of_rows(study: Study, figures: Mapping[str, Sequence[float]]) -> dict[str, Pooled]:
    """The spread that judges each row that has figures; none where no row has two.

    Where each variant has a base of its own, variants are judged apart: what is not compared with one another, such as
    tasks, need not spread alike.
    """
    apart = sum(row.label == study.against for row in study.rows) > 1
    judged: dict[str, Pooled] = {}
    for variant in dict.fromkeys(row.variant for row in study.rows) if apart else [None]:
        names = [row.name for row in study.rows if variant in (None, row.variant) and figures[row.name]]
        try:
            judged |= zip(names, spreads([figures[name] for name in names]), strict=True)
        except ValueError:
            continue
    return judged


def _spread(figures: Iterable[Sequence[float]]) -> Pooled | None:
    """The variance of a seed's figure; None where no row has two seeds."""
    try:
        return pooled(list(figures))
    except ValueError:
        return None


def _row(study: Study, jobs: Sequence[Job]) -> dict[str, Any]:
    """One row: its figures by seed, and where they come from."""
    standings = [(job, job.standing()) for job in jobs]
    done = [(job, job.summary()) for job, standing in standings if standing.state == "finished"]
    done = [(job, summary) for job, summary in done if isinstance(summary.get(study.decides), int | float)]
    figures = {str(job.seed): float(summary[study.decides]) for job, summary in done}
    row: dict[str, Any] = {"label": jobs[0].row.label, "figures": figures, "n_planned": len(jobs)}
    row["tuned"] = dict(jobs[0].values)
    row["unfinished"] = {
        str(job.seed): said(standing) for job, standing in standings if standing.state != "finished"
    }
    if not done:
        return row
    row["mean"] = float(np.mean(list(figures.values())))
    row["sd"] = float(np.std(list(figures.values()), ddof=1)) if len(figures) > 1 else None
    summaries = [summary for _, summary in done]
    row |= {name: summaries[0].get(name) for name in ("parameters", "tokens_seen", "flops", "state_bytes")}
    row["bits_per_byte"] = _mean(summaries, "val/bpb")
    row["accuracy"] = _mean(summaries, "val/legal_share")
    if row["accuracy"] is None:
        row["accuracy"] = _mean(summaries, "val/accuracy")
    if row["accuracy"] is not None:
        row["task"] = (_launch(done[0][0]).get("data") or {}).get("task")
        names = [name for name in summaries[0] if name.startswith(OF_SLICE)]
        row["slices"] = {name.removeprefix(OF_SLICE): _mean(summaries, name) for name in names}
    row["made_with"] = [_origin(job, summary) for job, summary in done]
    seconds = [job.progress()[1] for job, _ in done]
    row["times"] = {
        "seconds": float(np.mean(seconds)),
        "tokens_per_second": _mean(summaries, "launch/tokens_per_second"),
        "peak_bytes": _mean(summaries, "launch/peak_bytes"),
    }
    return row


def _launch(job: Job) -> dict[str, Any]:
    return (launches_of(job.run) or [{}])[-1]


def _origin(job: Job, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a number was made with: all that is needed to make it again."""
    launch = _launch(job)
    place = launch.get("place") or {}
    return {
        "seed": job.seed,
        "configuration_sha256": launch.get("configuration_sha256"),
        "commit": launch.get("commit"),
        "source_diff_sha256": launch.get("source_diff_sha256"),
        "data": launch.get("data"),
        "device": launch.get("device"),
        "torch": place.get("torch"),
        "path": "graph" if summary.get("launch/replayed_micro_batches") else "eager",
    }


def _mean(summaries: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [summary[name] for summary in summaries if isinstance(summary.get(name), int | float)]
    return float(np.mean(values)) if len(values) == len(summaries) and values else None


def _compare(study: Study, rows: dict[str, Any], judged: Mapping[str, Pooled]) -> None:
    """Adds each row's verdict against the one that it is compared with."""
    pairs: dict[str, Pair] = {}
    for row in study.rows:
        base = study.base_of(row)
        this, other = rows[row.name], rows[base.name] if base else {}
        if base and row.name in judged and base.name in judged:
            numbers = (this["mean"], len(this["figures"]), other["mean"], len(other["figures"]))
            pairs[row.name] = Pair(*numbers, judged[row.name], judged[base.name])
            this["against"] = base.name
    for name, found in zip(pairs, compare(list(pairs.values()), study.margin), strict=True):
        rows[name]["comparison"] = {**found._asdict(), "interval": list(found.interval)}


def _multiply(study: Study, rows: dict[str, Any]) -> None:
    """Adds the compute multiplier of each row that is no rung of the ladder."""
    whole = {name: row for name, row in rows.items() if row["figures"] and row.get("flops")}
    rungs = [row for row in whole.values() if row["label"] == study.ladder]
    ladder = [_point(row) for row in rungs]
    if study.ladder is None or len({rung.flops for rung in ladder}) < FEWEST_RUNGS:
        return
    for row in whole.values():
        spread = _spread([list(one["figures"].values()) for one in [*rungs, row]])
        if row["label"] == study.ladder or spread is None:
            continue
        found = multiplier(ladder, _point(row), spread)
        row["multiplier"] = {
            "value": str(found),
            "range": found.range,
            "excludes_one": found.excludes_one,
            "ladder_within_a_decade": is_within_a_decade(ladder),
        }


def _point(row: Mapping[str, Any]) -> Point:
    return Point(float(row["flops"]), row["mean"], len(row["figures"]))
