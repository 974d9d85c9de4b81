"""The shipped studies: each says what it shows and is understood, row by row."""

from pathlib import Path

import pytest

from app.commands.configs import heading
from app.commands.dry_run import duration
from app.commands.study import check_rows
from app.run.configuration import shipped_directory, shipped_names, shipped_studies
from app.study.jobs import Job
from app.study.plan import find_study, read_study

NAMES = shipped_studies()


def rows(name: str) -> list[Job]:
    study = read_study(find_study(name))
    tuned = study.tuning.points[-1] if study.tuning else {}
    return [Job(row, study.seeds[0], Path("nowhere"), tuned) for row in study.rows]


def test_studies_are_no_configurations() -> None:
    assert {"architectures", "banks", "routes", "skills"} <= set(NAMES)
    assert not [name for name in shipped_names(shipped_directory()) if name.startswith("study")]


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_shows_and_costs(name: str) -> None:
    about = heading(find_study(name))
    assert 20 < len(about.headline) <= 90
    assert about.cost
    text = find_study(name).read_text()
    assert f"\n# app study {name}\n" in text
    study = read_study(find_study(name))
    assert len(study.seeds) >= 3
    assert len({job.name for job in rows(name)}) == len(study.rows)


@pytest.mark.parametrize("name", NAMES)
def test_app_fit_takes_its_last_row(name: str) -> None:
    assert list(check_rows(rows(name)[-1:]).values()) > [0]


@pytest.mark.stress
@pytest.mark.parametrize("name", NAMES)
def test_app_fit_takes_every_row(name: str) -> None:
    assert len(check_rows(rows(name))) == len(rows(name))


def test_hours_are_never_in_scientific_notation() -> None:
    assert [duration(3600 * hours) for hours in (0.05, 1, 99, 99.7, 123.4, 5000)] == [
        "0.05 hours (3 minutes)", "1 hours", "99 hours", "100 hours", "123 hours", "5,000 hours",
    ]  # fmt: skip
