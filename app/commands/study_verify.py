"""``app study NAME --verify ROW``: the same seed gives the same bits, and new seeds what the old ones predict."""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.run.errors import ConfigurationError, ExitCode
from app.run.manifest import launches_of
from app.study.display import LiveTable, said
from app.study.engine import Engine
from app.study.jobs import Job
from app.study.plan import Study
from app.study.results import results
from app.study.statistics import Pooled, prediction
from app.study.tuning import seed_jobs

#: columns of metrics.csv that depend on the machine's load
TIMES = "speed/"
PLACE = ("device", "torch", "threads", "python")


def run(study: Study, output: Path, name: str, new_seeds: Sequence[int], trusted: Sequence[str]) -> int:
    """Runs the first seed of a row again, and new ones where they are named.

    Args:
        study: whose row.
        output: folder of the study.
        name: of the row.
        new_seeds: to be held against the prediction interval.
        trusted: import prefixes of the user's own.

    Raises:
        ConfigurationError: no such row, a run that is not finished, or a new seed that is an old one.
    """
    row = study.row(name)
    jobs = [job for job in seed_jobs(study, output, trusted) if job.row == row]
    first = jobs[0]
    if first.standing().state != "finished":
        raise ConfigurationError(
            f"row {first.name}: {said(first.standing())}; there is nothing to verify yet"
        )
    if old := sorted({*new_seeds} & {*study.seeds}):
        raise ConfigurationError(f"--seeds: {old} are seeds of the study; name others")
    again = _elsewhere(first, first.seed)
    others = [_elsewhere(first, seed) for seed in new_seeds]
    with LiveTable({}) as display:
        standings = Engine(1, [], display).run([again, *others])
    if failed := [job for job in (again, *others) if standings[job.name].state != "finished"]:
        raise ConfigurationError(
            f"verify {job.name}: {said(standings[job.name])}; see {job.log}" for job in failed
        )
    is_kept = _compare_bits(first, again)
    if others:
        is_kept &= _compare_seeds(study, results(study, seed_jobs(study, output, trusted)), name, others)
    return int(ExitCode.DONE if is_kept else ExitCode.UNEXPECTED)


def _elsewhere(job: Job, seed: int) -> Job:
    """The same run in a folder of its own, which no earlier verification has used."""
    number = 1
    while (folder := job.output / "verify" / str(number)).exists() and any(
        (folder / "runs" / job.row.name / f"{job.kind}_{other}").exists() for other in (seed,)
    ):
        number += 1
    return Job(job.row, seed, folder, job.values, job.kind, job.threads, job.trusted)


def _compare_bits(first: Job, again: Job) -> bool:
    """Says whether two runs of one seed have the same figures to the last bit."""
    here, there = (_place(job) for job in (again, first))
    differing = [key for key in PLACE if here.get(key) != there.get(key)]
    different = _different(first, again)
    if not different:
        print(
            f"{first.name}: the same to the last bit, {again.progress()[0]:,} steps, {len(_figures(again))} figures"
        )
        return True
    print(f"{first.name}: differs in {', '.join(different[:5])}")
    for key in differing:
        print(
            f"         made with {key} {there.get(key)}, now {here.get(key)}: only equal places promise equal bits"
        )
    return bool(differing)


def _different(first: Job, again: Job) -> list[str]:
    ours, theirs = _figures(first), _figures(again)
    found = [key for key in sorted({*ours, *theirs}) if not _is_same(ours.get(key), theirs.get(key))]
    mine, other = _curve(first), _curve(again)
    found += [f"metrics.csv at step {a[0]}" for a, b in zip(mine, other, strict=False) if a != b][:1]
    return found + ([] if len(mine) == len(other) else ["the number of rows of metrics.csv"])


def _figures(job: Job) -> dict[str, Any]:
    return {key: value for key, value in job.summary().items() if not key.startswith("launch/")}


def _is_same(a: Any, b: Any) -> bool:
    return json.dumps(a) == json.dumps(b)


def _curve(job: Job) -> list[tuple[str, ...]]:
    """The rows of metrics.csv, without what is a matter of time."""
    with job.run.metrics.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    keys = sorted({key for row in rows for key in row if key and not key.startswith(TIMES)} - {"step"})
    return [(row["step"], *(row.get(key) or "" for key in keys)) for row in rows]


def _compare_seeds(study: Study, report: dict[str, Any], name: str, others: Sequence[Job]) -> bool:
    """Says whether new seeds lie where those of the study predict."""
    row = report["rows"][name]
    spread = row.get("spread", report["spread"])
    if spread is None:
        print("note     no row has two seeds: nothing is predicted")
        return True
    inside = True
    for job in others:
        figure = float(job.summary().get(study.decides, math.nan))
        around = prediction(row["mean"], len(row["figures"]), Pooled(spread["sd"] ** 2, spread["degrees"]))
        is_inside = around.low <= figure <= around.high
        inside &= is_inside
        where = "inside" if is_inside else "outside"
        print(
            f"{job.name}: {figure:.4f}, {where} of {around.low:.4f} to {around.high:.4f}, where 95 % of seeds are"
        )
    return inside


def _place(job: Job) -> dict[str, Any]:
    launch = (launches_of(job.run) or [{}])[-1]
    return {**launch, **(launch.get("place") or {})}
