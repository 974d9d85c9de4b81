"""Means of a few seeds: a variance pooled over all rows, Student's intervals, and corrections for many comparisons.

Three seeds tell next to nothing of their own spread. Rows of one study are trained on one text at one length, and their
losses spread alike; so one variance is estimated from all of them, with the degrees of freedom that they have together.
Where they have five seeds and do not spread alike, each row's own variance judges it: a pooled one is too small for the
rows that spread widely and hides what the others tell.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special, stats

LEVEL = 0.95
#: p of Bartlett's test up to which rows are taken to spread unequally: not a claim, so it may err often. With own
#: variances a mean is merely told less sharply
UNEQUAL = 0.2
#: of a row, for its own variance to say something: Student's quantile is 4.3 with three seeds and 2.8 with five
FEWEST_SEEDS = 5


class Pooled(NamedTuple):
    """A variance estimated from several groups.

    Attributes:
        variance: of a single seed's figure.
        degrees: of freedom, seeds less groups; at least 1. No whole number where two variances are joined.
    """

    variance: float
    degrees: float

    @property
    def sd(self) -> float:
        """Standard deviation of a single seed's figure."""
        return float(self.variance**0.5)


class Interval(NamedTuple):
    """From ``low`` to ``high``, both finite unless said otherwise."""

    low: float
    high: float


def pooled(groups: Sequence[Sequence[float]]) -> Pooled:
    """The variance within groups of figures.

    Args:
        groups: the figures of each row, one a seed.

    Raises:
        ValueError: no group has two figures.
    """
    degrees = sum(len(group) - 1 for group in groups if len(group) > 1)
    if degrees < 1:
        raise ValueError("a variance needs a row with two seeds")
    squares = sum(float(np.var(group)) * len(group) for group in groups if len(group) > 1)
    return Pooled(squares / degrees, degrees)


def spreads(groups: Sequence[Sequence[float]]) -> list[Pooled]:
    """The variance that judges each row: one for all, or its own where rows of five seeds spread unequally.

    Args:
        groups: the figures of each row, one a seed.

    Raises:
        ValueError: no group has two figures.
    """
    everywhere = pooled(groups)
    if spread_alike(groups):
        return [everywhere] * len(groups)
    return [pooled([group]) if len(group) >= FEWEST_SEEDS else everywhere for group in groups]


def spread_alike(groups: Sequence[Sequence[float]]) -> bool:
    """Whether rows of enough seeds to tell are not told to spread unequally (Bartlett 1937)."""
    told = [group for group in groups if len(group) >= FEWEST_SEEDS]
    variances = np.array([np.var(group, ddof=1) for group in told])
    if len(told) < 2 or not (variances > 0).all():
        return True
    degrees = np.array([len(group) - 1 for group in told])
    log_ratios = degrees.sum() * np.log(degrees @ variances / degrees.sum()) - degrees @ np.log(variances)
    correction = 1 + ((1 / degrees).sum() - 1 / degrees.sum()) / (3 * (len(told) - 1))
    # That of scipy.stats checks its arguments for twenty times as long.
    return float(special.chdtrc(len(told) - 1, log_ratios / correction)) > UNEQUAL


def interval(mean: float, n: int, spread: Pooled, level: float = LEVEL) -> Interval:
    """Where the mean over all seeds lies, by that of ``n`` of them."""
    half = _quantile(spread, level) * (spread.variance / n) ** 0.5
    return Interval(mean - half, mean + half)


def prediction(mean: float, n: int, spread: Pooled, n_new: int = 1, level: float = LEVEL) -> Interval:
    """Where the mean of ``n_new`` further seeds lies, by that of ``n`` others."""
    half = _quantile(spread, level) * (spread.variance * (1 / n + 1 / n_new)) ** 0.5
    return Interval(mean - half, mean + half)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979): those up to α may all be believed at α."""
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, number in enumerate(order.tolist()):
        largest = max(largest, min(1.0, (len(p_values) - place) * float(p_values[number])))
        adjusted[number] = largest
    return adjusted


def _quantile(spread: Pooled, level: float) -> float:
    return float(stats.t.ppf((1 + level) / 2, spread.degrees))
