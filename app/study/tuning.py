"""The runs of a study in their order: those that tune a row, then its seeds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.run.errors import ConfigurationError
from app.study.jobs import Job
from app.study.plan import Row, Study


def tuning_jobs(study: Study, output: Path, trusted: Sequence[str] = ()) -> list[Job]:
    """A run for each row and point of the grid; none where nothing is tuned."""
    return [job for row in study.rows for job in _tuning_of(study, row, output, trusted)]


def seed_jobs(
    study: Study, output: Path, trusted: Sequence[str] = (), must_be_tuned: bool = True
) -> list[Job]:
    """A run for each row and seed, at the point of the grid that was best.

    Args:
        study: what was planned.
        output: its folder.
        trusted: import prefixes of the user's own.
        must_be_tuned: whether a row without a point is an error; otherwise its runs have no tuned values.

    Raises:
        ConfigurationError: naming the rows of which no tuning run is finished.
    """
    found, problems = [], []
    for row in study.rows:
        values = tuned(study, row, output, trusted)
        if values is None and must_be_tuned:
            problems.append(f"row {row.name}: not all of its tuning runs are finished; run those first")
        found += [
            Job(row, seed, output, values or {}, "seed", study.threads, trusted) for seed in study.seeds
        ]
    if problems:
        raise ConfigurationError(problems)
    return found


def n_seed_jobs(study: Study) -> int:
    """How many runs :func:`seed_jobs` has."""
    return len(study.rows) * len(study.seeds)


def tuned(study: Study, row: Row, output: Path, trusted: Sequence[str] = ()) -> dict[str, Any] | None:
    """The point of the grid with the least figure, the first of equals; None while a point is missing."""
    jobs = _tuning_of(study, row, output, trusted)
    if study.tuning is None:
        return {}
    figures = [job.summary().get(study.decides) for job in jobs if job.standing().state == "finished"]
    known = [figure for figure in figures if isinstance(figure, int | float)]
    if len(known) < len(jobs):
        return None
    return study.tuning.points[min(range(len(known)), key=known.__getitem__)]


def _tuning_of(study: Study, row: Row, output: Path, trusted: Sequence[str]) -> list[Job]:
    if study.tuning is None:
        return []
    judged = {"data.tuning_fraction": study.tuning.fraction}
    return [
        Job(row, study.tuning.seed, output, {**point, **judged}, f"tune{number}", study.threads, trusted)
        for number, point in enumerate(study.tuning.points)
    ]
