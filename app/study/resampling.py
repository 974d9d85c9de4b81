"""Whether the statistics keep what they promise on losses of real runs: a pool of many seeds at several sizes.

Five seeds of each row are drawn from its pool, with replacement, so that the pool is the population and its means are
the truth. Multipliers are planted by stating a row's compute wrongly by a known factor; two halves of one row are an
A/A comparison, whose rows are equal.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from app.study.calibration import Finding, coverage, error_rate, holds, multiplier_of, pair_of
from app.study.multiplier import FEWEST_RUNGS
from app.study.statistics import FEWEST_SEEDS as N_SEEDS
from app.study.statistics import interval, spreads
from app.study.verdicts import compare

#: of a row's pool, to be a population
FEWEST_OF_POOL = 12
PLANTED = (0.8, 1.0, 1.25)


def resampled(report: Mapping[str, Any], n_draws: int = 2000, seed: int = 0) -> Iterator[Finding]:
    """All lines of a calibration on real runs.

    Args:
        report: ``results.json`` of a study whose rows are sizes of one network.
        n_draws: studies drawn behind each line.
        seed: of the drawing.

    Raises:
        ValueError: too few rows or seeds.
    """
    rows = [
        row for row in report["rows"].values() if len(row["figures"]) >= FEWEST_OF_POOL and row.get("flops")
    ]
    if len(rows) < FEWEST_RUNGS:
        raise ValueError(
            f"a pool needs {FEWEST_RUNGS} rows of {FEWEST_OF_POOL} seeds, this one has {len(rows)}"
        )
    rows.sort(key=lambda row: float(row["flops"]))
    pools = [np.array(list(row["figures"].values())) for row in rows]
    flops = [float(row["flops"]) for row in rows]
    generator = np.random.default_rng([seed, n_draws])
    yield from _means(pools, n_draws, generator)
    yield from _equal_rows(pools, report["margin"], n_draws, generator)
    yield from _multipliers(pools, flops, n_draws, generator)


def _drawn(pools: list[np.ndarray], generator: np.random.Generator) -> np.ndarray:
    return np.stack([generator.choice(pool, N_SEEDS) for pool in pools])


def _means(pools: list[np.ndarray], n_draws: int, generator: np.random.Generator) -> Iterator[Finding]:
    held = 0
    for number in range(n_draws):
        figures, row = _drawn(pools, generator), number % len(pools)
        around = interval(float(figures[row].mean()), N_SEEDS, spreads(figures.tolist())[row])
        held += holds(around, float(pools[row].mean()))
    yield coverage(f"95 % interval, mean of a row, {len(pools)} rows of real runs", held / n_draws, n_draws)


def _equal_rows(
    pools: list[np.ndarray], margin: float, n_draws: int, generator: np.random.Generator
) -> Iterator[Finding]:
    told = 0
    for number in range(n_draws):
        halves = np.array_split(generator.permutation(pools[number % len(pools)]), 2)
        figures = _drawn([*pools, *halves], generator)
        pair = pair_of(figures, -2, spreads(figures.tolist()))
        told += compare([pair], margin)[0].verdict in ("better", "worse")
    yield error_rate("A/A: two halves of one row told apart by the margin", told / n_draws, n_draws)


def _multipliers(
    pools: list[np.ndarray], flops: list[float], n_draws: int, generator: np.random.Generator
) -> Iterator[Finding]:
    for planted in PLANTED:
        held = told = 0
        for number in range(n_draws):
            place = 1 + number % (len(pools) - 2)
            figures = _drawn([*pools, pools[place]], generator)
            found = multiplier_of(figures, flops, flops[place] / planted, seed=number)
            held += holds(found.interval, planted)
            told += found.excludes_one
        yield coverage(f"95 % interval, planted multiplier of {planted:g}", held / n_draws, n_draws)
        if planted == 1:
            yield error_rate("multiplier of 1 told from 1", told / n_draws, n_draws)
