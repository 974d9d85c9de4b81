"""Three seeds of every architecture: steps from graphs, by kernels, learn what eager ones, by PyTorch's operations, do."""

import os
import statistics
from functools import partial
from pathlib import Path

import pytest

from app.study.statistics import interval, pooled
from tests.gpu.runs_there import SHIPPED, Figure, fit, needs, summary, words
from tests.support import runs
from tests.support.application import Application

pytestmark = needs(1)
SEEDS = (1, 2, 3)
N_STEPS = int(os.environ.get("SEED_STEPS", "200"))
#: of the operators of the old path: vectorized, or naive
OLD_FORM = os.environ.get("OLD_FORM", "vectorized")
MARGIN = 0.01
#: launches of one test; several tests may run beside it
AT_ONCE = 2 if "PYTEST_XDIST_WORKER" in os.environ else 6


def validation(run: Path) -> float:
    """The last loss on the whole validation split, in nats."""
    return float(next(row["val/loss"] for row in reversed(runs.curve(run)) if "val/loss" in row))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SHIPPED)
def test_the_new_path_learns_what_the_old_one_does(
    application: Application, tmp_path: Path, figure: Figure, name: str
) -> None:
    given = words(
        name, "--trainer.max_steps", N_STEPS, "--trainer.val_check_interval", N_STEPS, "--trainer.limit_val_batches", 1.0,
        "--checkpoint_every_n_steps", N_STEPS, "--model.warmup_steps", max(1, min(50, N_STEPS // 4)),
    )  # fmt: skip
    jobs = {}
    for seed in SEEDS:
        for path, words_of_path, env in (
            ("old", ("--graph", "false"), {"APP_OP_FORM": OLD_FORM}),
            ("new", (), {}),
        ):
            run = tmp_path / f"{path}-{seed}"
            more = (*given, "--seed", seed, *words_of_path)
            jobs[run.name] = partial(fit, application, run, *more, env=env, timeout=1800)
    begun = application.begin(jobs, at_once=AT_ONCE)
    for job in begun.values():
        job.result()
    old, new = ([validation(tmp_path / f"{path}-{seed}") for seed in SEEDS] for path in ("old", "new"))
    for seed in SEEDS:
        summary(tmp_path / f"new-{seed}")
    paths = [runs.launches(tmp_path / f"{path}-1")[-1]["path"] for path in ("old", "new")]
    assert [path["steps"] for path in paths] == ["eager", "graph"]
    differences = [b - a for a, b in zip(old, new, strict=True)]
    mean = statistics.mean(differences)
    low, high = interval(mean, len(SEEDS), pooled([differences]))
    forms = [", ".join(sorted({*path["operators"].values()})) or "no operators" for path in paths]
    figure(
        f"{name}, {N_STEPS} steps, validation in nats: old ({forms[0]}) {_row(old)}; new ({forms[1]}) {_row(new)}; "
        f"differences {_row(differences, '+')}; mean {mean:+.4f} [{low:+.4f}, {high:+.4f}], of which up to {MARGIN} is allowed"
    )
    assert abs(mean) <= MARGIN


def _row(figures: list[float], sign: str = "") -> str:
    return " ".join(f"{figure:{sign}.4f}" for figure in figures)
