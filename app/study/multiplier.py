"""How much less compute an idea needs for its loss than the baseline does.

The baseline is trained at several sizes, a ladder: its loss L against the FLOPs C of its active work, at equal tokens
per parameter. Between the rungs ln L is a monotone cubic of ln C (Fritsch and Carlson 1980); beyond them is nothing.
The multiplier of an idea is C_base(L_idea) / C_idea: above 1 it needs less. Its interval comes from a parametric
bootstrap: every mean loss is drawn anew from the variance that all seeds pool, which is itself uncertain.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.interpolate import PchipInterpolator

from app.study.statistics import LEVEL, Interval, Pooled

FEWEST_RUNGS = 6
MOST_DECADES = 1.0
N_DRAWS = 2000
#: places between the ends of a ladder at which its curve is looked up; they lie 0.5 % of compute apart in a decade
N_PLACES = 513


class Point(NamedTuple):
    """A network at one size.

    Attributes:
        flops: of its whole training, positive.
        loss: mean over its seeds, positive.
        n: seeds.
    """

    flops: float
    loss: float
    n: int


class Multiplier(NamedTuple):
    """What an idea is worth in compute.

    Attributes:
        value: of the mean losses; ``inf`` or 0 where the ladder ends before the idea's loss.
        interval: of it, 95 %; an end beyond the ladder is ``inf`` or 0.
        low: the smallest and
        high: the largest multiplier that the ladder can tell at this compute.
    """

    value: float
    interval: Interval
    low: float
    high: float

    def __str__(self) -> str:
        return _said(self.value, self.low, self.high)

    @property
    def range(self) -> str:
        """The interval in words: ``1.12 to > 3.4``."""
        return " to ".join(_said(end, self.low, self.high) for end in self.interval)

    @property
    def excludes_one(self) -> bool:
        """Whether it is told from 1; of what lies beyond the ladder no more is known than where that ends."""
        return min(self.interval.low, self.high) > 1 or max(self.interval.high, self.low) < 1


def multiplier(
    ladder: Sequence[Point], idea: Point, spread: Pooled, seed: int = 0, n_draws: int = N_DRAWS
) -> Multiplier:
    """The compute multiplier of an idea.

    Args:
        ladder: the baseline's sizes, at least :data:`FEWEST_RUNGS` of different compute.
        idea: what is compared.
        spread: variance of a seed's loss, pooled over the ladder and the idea.
        seed: of the bootstrap.
        n_draws: of it.

    Raises:
        ValueError: too few rungs.
    """
    rungs = sorted(ladder)
    if len({rung.flops for rung in rungs}) < FEWEST_RUNGS:
        raise ValueError(f"a ladder needs {FEWEST_RUNGS} sizes, this one has {len(rungs)}")
    generator = np.random.default_rng(seed)
    losses = np.array([rung.loss for rung in rungs] + [idea.loss])
    counts = np.array([rung.n for rung in rungs] + [idea.n])
    sd = (spread.variance * spread.degrees / generator.chisquare(spread.degrees, n_draws)) ** 0.5
    drawn = losses[:, None] + generator.standard_normal((len(losses), n_draws)) * sd / counts[:, None] ** 0.5
    drawn = np.concatenate([losses[:, None], drawn], 1)
    log_flops = np.log([rung.flops for rung in rungs])
    found = np.exp(_compute_at(log_flops, np.log(np.maximum(drawn, 1e-12))) - math.log(idea.flops))
    low, high = np.quantile(found[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest")
    ends = np.exp(log_flops[[0, -1]] - math.log(idea.flops))
    return Multiplier(float(found[0]), Interval(float(low), float(high)), float(ends[0]), float(ends[1]))


def curve(ladder: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
    """The baseline's loss at any compute of its ladder: FLOPs and losses, ``(N_PLACES,)`` each."""
    rungs = sorted(ladder)
    log_losses = np.log([[max(rung.loss, 1e-12)] for rung in rungs])
    place, found = _monotone(np.log([rung.flops for rung in rungs]), log_losses)
    return np.exp(place), np.exp(found[:, 0])


def is_within_a_decade(ladder: Sequence[Point]) -> bool:
    """Whether all rungs lie within one decade of compute."""
    flops = [rung.flops for rung in ladder]
    return math.log10(max(flops) / min(flops)) <= MOST_DECADES + 1e-9


def _compute_at(log_flops: np.ndarray, log_losses: np.ndarray) -> np.ndarray:
    """Log-compute at which the baseline has the loss of the last row; −inf or inf beyond the ladder.

    Args:
        log_flops: ``(k,)``, increasing.
        log_losses: ``(k + 1, n)``: of the rungs, and of the idea, in each draw.
    """
    wanted = log_losses[-1]
    place, curve = _monotone(log_flops, log_losses[:-1])
    above = (curve > wanted).sum(0)  # places at which the baseline is worse
    left = np.clip(above - 1, 0, N_PLACES - 2)
    columns = np.arange(len(wanted))
    drop = curve[left, columns] - curve[left + 1, columns]
    share = np.where(drop > 0, (curve[left, columns] - wanted) / np.where(drop > 0, drop, 1), 0.0)
    inside = place[left] + np.clip(share, 0, 1) * (place[1] - place[0])
    inside = np.where(wanted > curve[0], -np.inf, inside)
    return np.where(wanted < curve[-1], np.inf, inside)


def _monotone(log_flops: np.ndarray, rungs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-compute ``(N_PLACES,)`` and log-losses ``(N_PLACES, n)`` between the rungs ``(k, n)``, not increasing."""
    # Where noise makes a larger network worse, half-way between what is the best so far and the worst to come.
    best = np.minimum.accumulate(rungs, 0)
    worst = np.maximum.accumulate(rungs[::-1], 0)[::-1]
    place = np.linspace(log_flops[0], log_flops[-1], N_PLACES)
    return place, PchipInterpolator(log_flops, (best + worst) / 2, axis=0)(place)


def _said(value: float, low: float, high: float) -> str:
    if value == math.inf:
        return f"> {high:.3g}"
    return f"< {low:.3g}" if value == 0 else f"{value:.3g}"
