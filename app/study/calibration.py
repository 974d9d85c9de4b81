"""Whether the statistics keep what they promise: on simulated losses whose truth is known.

Every table here is computed by the functions that judge a study, on normal losses of the spread that small language
models have (0.01 nats from seed to seed), with three seeds a row unless it says otherwise.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from app.study.multiplier import Multiplier, Point, multiplier
from app.study.statistics import FEWEST_SEEDS, Interval, Pooled, interval, pooled, prediction, spreads
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
    for n in (N_SEEDS, FEWEST_SEEDS):
        mean_held = new_held = unequal_held = 0
        for number in range(n_draws):
            figures = simulated_rows(generator, truths, n)
            spread, mean = spreads(figures.tolist())[0], float(figures[0].mean())
            mean_held += holds(interval(mean, n, spread), truths[0])
            new_held += holds(prediction(mean, n, spread), truths[0] + SD * generator.standard_normal())
            figures = truths[:, None] + unequal * generator.standard_normal((N_ROWS, n))
            row = number % N_ROWS
            around = interval(float(figures[row].mean()), n, spreads(figures.tolist())[row])
            unequal_held += holds(around, truths[row])
        of = f"95 % interval, {n} seeds, mean"
        yield coverage(f"{of} of a row", mean_held / n_draws, n_draws)
        yield coverage(f"{of} of one further seed", new_held / n_draws, n_draws)
        found = coverage(
            f"{of} of a row, spreads 0.5 and 1.5 times as large", unequal_held / n_draws, n_draws
        )
        if n < FEWEST_SEEDS:
            found = found._replace(promise="none: too few seeds for variances of their own", is_kept=True)
        yield found


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
            judged = spreads(figures.tolist())
            found = compare([pair_of(figures, place, judged) for place in range(len(figures) - 1)], MARGIN)
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
            found = multiplier_of(figures, flops.tolist(), at, seed=number)
            held += holds(found.interval, truth)
            told += found.excludes_one
        yield coverage(f"95 % interval, compute multiplier of {truth:g}", held / n_draws, n_draws)
        if truth == 1:
            yield error_rate("compute multiplier of 1 told from 1", told / n_draws, n_draws)


def _verdict_of_first(figures: np.ndarray) -> Verdict:
    return compare([pair_of(figures, 0, spreads(figures.tolist()), base=1)], MARGIN)[0].verdict


def pair_of(figures: np.ndarray, place: int, judged: Sequence[Pooled], base: int = -1) -> Pair:
    """A row of ``(rows, n)`` figures and the one that it is compared with."""
    means, n = figures.mean(1), figures.shape[1]
    return Pair(float(means[place]), n, float(means[base]), n, judged[place], judged[base])


def multiplier_of(figures: np.ndarray, flops: Sequence[float], idea_flops: float, seed: int) -> Multiplier:
    """That of the last row of ``(rows, n)`` figures, on the ladder of all others."""
    n = figures.shape[1]
    points = [Point(c, float(row.mean()), n) for c, row in zip([*flops, idea_flops], figures, strict=True)]
    return multiplier(points[:-1], points[-1], pooled(figures.tolist()), seed=seed, n_draws=N_BOOTSTRAP)


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
