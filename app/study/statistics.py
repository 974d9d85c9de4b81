"""Means of a few seeds: a variance pooled over all rows, Student's intervals, and corrections for many comparisons.

Three seeds tell next to nothing of their own spread. Rows of one study are trained on one text at one length; so one
variance is estimated from all of them, with the degrees of freedom that they have together. It is too small for rows
that spread more widely than others, as real ones do, and hides what those tell: from five seeds on a row is judged by
its own.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95
#: of a row, for its own variance to say enough: Student's quantile is 4.3 with three seeds and 2.8 with five
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
    """The variance that judges each row: its own from :data:`FEWEST_SEEDS` on, else that of all rows together.

    Args:
        groups: the figures of each row, one a seed.

    Raises:
        ValueError: no group has two figures.
    """
    everywhere = pooled(groups)
    return [pooled([group]) if len(group) >= FEWEST_SEEDS else everywhere for group in groups]


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
