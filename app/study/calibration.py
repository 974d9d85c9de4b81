"""Whether the statistics keep what they promise: on simulated losses whose truth is known.

Every table here is computed by the functions that judge a study, on normal losses of the spread that small language
models have (0.01 nats from seed to seed), with three seeds a row unless it says otherwise.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from app.study.multiplier import Point, multiplier
from app.study.statistics import Interval, interval, pooled, prediction
from app.study.verdicts import Pair, Verdict, compare, seeds_for_equivalence

SD = 0.01
MARGIN = 0.01
N_ROWS, N_SEEDS = 12, 3
#: of the bootstrap of each simulated multiplier
N_BOOTSTRAP = 500
#: bounds that a table is held against
COVERAGE = Interval(0.94, 0.96)
MOST_FALSE = 0.05
#: standard errors of a simulated share by which it may lie beyond a bound that holds exactly
SLACK = 2.0


class Finding(NamedTuple):
    """One line of a calibration.

    Attributes:
        what: was simulated.
        share: found.
        promise: in words.
        is_kept: whether the share keeps it.
    """

    what: str
    share: float
    promise: str
    is_kept: bool


def calibrate(n_draws: int = 2000, seed: int = 0) -> Iterator[Finding]:
    """All lines, one after the other.

    Args:
        n_draws: simulated studies behind each.
        seed: of the simulation.
    """
    for part in (_intervals, _verdicts, _families, _power, _multipliers):
        yield from part(n_draws, np.random.default_rng([seed, n_draws]))


def simulated_rows(
    generator: np.random.Generator, truths: Sequence[float] | np.ndarray, n: int, sd: float = SD
) -> np.ndarray:
    """``(rows, n)`` losses."""
    return np.array(truths)[:, None] + sd * generator.standard_normal((len(truths), n))


def _intervals(n_draws: int, generator: np.random.Generator) -> Iterator[Finding]:
    truths = 1.5 + 0.05 * np.arange(N_ROWS)
    unequal = SD * np.where(np.arange(N_ROWS) % 2, 0.5, 1.5)[:, None]
    held = {
        "mean of a row": 0,
        "mean of one further seed": 0,
        "mean of a row, spreads 0.5 and 1.5 times as large": 0,
    }
    for _ in range(n_draws):
        figures = simulated_rows(generator, truths, N_SEEDS)
        spread, mean = pooled(figures.tolist()), float(figures[0].mean())
        held["mean of a row"] += holds(interval(mean, N_SEEDS, spread), truths[0])
        new = truths[0] + SD * generator.standard_normal()
        held["mean of one further seed"] += holds(prediction(mean, N_SEEDS, spread), new)
        figures = truths[:, None] + unequal * generator.standard_normal((N_ROWS, N_SEEDS))
        row = int(generator.integers(N_ROWS))
        around = interval(float(figures[row].mean()), N_SEEDS, pooled(figures.tolist()))
        held["mean of a row, spreads 0.5 and 1.5 times as large"] += holds(around, truths[row])
    for what, n in list(held.items())[:2]:
        yield coverage(f"95 % interval, {what}", n / n_draws, n_draws)
    (what, n) = list(held.items())[2]
    yield Finding(f"95 % interval, {what}", n / n_draws, "none: the pooled variance is then wrong", True)


def _verdicts(n_draws: int, generator: np.random.Generator) -> Iterator[Finding]:
    for n in (3, 10, 25):
        for truth in (0.0, 0.5, 1.0, 1.5, 2.0):
            false, said = 0, dict.fromkeys(("better", "worse", "equivalent", "undecided"), 0)
            for _ in range(n_draws):
                figures = simulated_rows(generator, (1.5 - truth * MARGIN, 1.5, 1.6, 1.7), n)
                verdict = _verdict_of_first(figures)
                said[verdict] += 1
                false += verdict in _false_of(truth)
            shares = ", ".join(f"{name} {count / n_draws:.0%}" for name, count in said.items() if count)
            what = f"false verdicts, {n} seeds, better by {truth:g} margins ({shares})"
            yield error_rate(what, false / n_draws, n_draws)


def _families(n_draws: int, generator: np.random.Generator) -> Iterator[Finding]:
    truths = np.array([0.0, 0.0, 0.5, -0.5, 1.0, -1.0, 1.0, 0.0])
    for n in (3, 20):
        wrong = 0
        for _ in range(n_draws):
            figures = simulated_rows(generator, (*(1.5 - truths * MARGIN), 1.5), n)
            means, spread = [float(row.mean()) for row in figures], pooled(figures.tolist())
            found = compare([Pair(mean, n, means[-1], n, spread) for mean in means[:-1]], MARGIN)
            wrong += any(c.verdict in _false_of(t) for c, t in zip(found, truths, strict=True))
        yield error_rate(f"any false verdict among 8 comparisons, {n} seeds", wrong / n_draws, n_draws)


def _power(n_draws: int, generator: np.random.Generator) -> Iterator[Finding]:
    n = seeds_for_equivalence(SD, MARGIN)
    assert n is not None
    found = sum(
        _verdict_of_first(simulated_rows(generator, (1.5, 1.5), n)) == "equivalent" for _ in range(n_draws)
    )
    share, low = found / n_draws, 0.8 - SLACK * math.sqrt(0.16 / n_draws)
    yield Finding(
        f"equal rows found equivalent with the {n} seeds of a plan", share, "at least 80 %", share >= low
    )


def _multipliers(n_draws: int, generator: np.random.Generator) -> Iterator[Finding]:
    flops = np.geomspace(1e14, 1e15, 6)

    def law(of: float) -> float:
        return 1.1 + 0.6 * (of / 1e14) ** -0.3

    for truth in (1.0, 1.25, 2.0):
        held = told = 0
        at = 3e14
        for number in range(n_draws):
            figures = simulated_rows(generator, [law(c) for c in flops] + [law(truth * at)], N_SEEDS)
            ladder = [Point(c, float(row.mean()), N_SEEDS) for c, row in zip(flops, figures, strict=False)]
            idea = Point(at, float(figures[-1].mean()), N_SEEDS)
            found = multiplier(ladder, idea, pooled(figures.tolist()), seed=number, n_draws=N_BOOTSTRAP)
            held += holds(found.interval, truth)
            told += found.excludes_one
        yield coverage(f"95 % interval, compute multiplier of {truth:g}", held / n_draws, n_draws)
        if truth == 1:
            yield error_rate("compute multiplier of 1 told from 1", told / n_draws, n_draws)


def _verdict_of_first(figures: np.ndarray) -> Verdict:
    n, (first, other) = figures.shape[1], (float(row.mean()) for row in figures[:2])
    return compare([Pair(first, n, other, n, pooled(figures.tolist()))], MARGIN)[0].verdict


def _false_of(truth: float) -> set[str]:
    """Verdicts that are false of a row that is better by so many margins."""
    true = {"undecided"} | ({"equivalent"} if abs(truth) < 1 else {"better" if truth > 0 else "worse"})
    return {"better", "worse", "equivalent"} - true


def holds(around: Interval, value: float) -> bool:
    """Whether an interval holds a value."""
    return around.low <= value <= around.high


def coverage(what: str, share: float, n_draws: int) -> Finding:
    """A line about a share of 95 % intervals that hold the truth."""
    slack = SLACK * math.sqrt(0.95 * 0.05 / n_draws)
    kept = min(COVERAGE.low, 0.95 - slack) <= share <= max(COVERAGE.high, 0.95 + slack)
    return Finding(what, share, f"{COVERAGE.low:.0%} to {COVERAGE.high:.0%}", kept)


def error_rate(what: str, share: float, n_draws: int) -> Finding:
    """A line about a share of errors."""
    slack = SLACK * math.sqrt(MOST_FALSE * (1 - MOST_FALSE) / n_draws)
    return Finding(what, share, f"at most {MOST_FALSE:.0%}", share <= MOST_FALSE + slack)
