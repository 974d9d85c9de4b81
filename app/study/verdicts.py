"""Better, worse, equivalent or undecided, at a margin that is set before the runs.

Figures are losses: less is better. A difference is this row's mean less the other's.

*better*, *worse*: by at least the margin. The 95 % interval of the difference lies beyond it, which is a test on each
side at 2.5 %. *equivalent*: within the margin, by two one-sided tests at 5 % each (Schuirmann 1987), of which both must
hold, so that together they err in at most 5 %. Anything else is *undecided*, which is no claim that two rows are alike.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from scipy import stats

from app.study.statistics import LEVEL, Interval, Pooled, holm, interval

Verdict = Literal["better", "worse", "equivalent", "undecided"]
ALPHA = 1 - LEVEL
POWER = 0.8
#: beyond it no number of seeds is named
MOST_SEEDS = 1000


class Pair(NamedTuple):
    """Two rows.

    Attributes:
        mean: of this row.
        n: its seeds.
        other_mean: of the one that it is compared with.
        other_n: that one's seeds.
        spread: variance of a seed's figure of this row.
        other_spread: of the other's; None where one variance was estimated for both.
    """

    mean: float
    n: int
    other_mean: float
    other_n: int
    spread: Pooled
    other_spread: Pooled | None = None

    @property
    def difference(self) -> float:
        """Of the means, negative where this row is better."""
        return self.mean - self.other_mean

    @property
    def of_difference(self) -> Pooled:
        """Variance of the difference; of two variances with the degrees of freedom of Welch (1947)."""
        variance = self.spread.variance / self.n
        if self.other_spread is None or self.other_spread is self.spread:
            return Pooled(variance + self.spread.variance / self.other_n, self.spread.degrees)
        other = self.other_spread.variance / self.other_n
        parts = variance**2 / self.spread.degrees + other**2 / self.other_spread.degrees
        return Pooled(variance + other, (variance + other) ** 2 / parts if parts > 0 else self.spread.degrees)

    @property
    def sd(self) -> float:
        """Of a seed's figure, as if both rows spread alike."""
        other = self.other_spread or self.spread
        return float(((self.spread.variance + other.variance) / 2) ** 0.5)


class Comparison(NamedTuple):
    """What two rows' figures allow to say.

    Attributes:
        difference: of the means, negative where this row is better.
        interval: of it, 95 %.
        p: of the claim that is supported best, adjusted for the number of comparisons.
        verdict: what is claimed at 5 %.
        seeds: of each row that would decide with 80 % power if the difference is what it seems; None where it is
            decided or would take more than :data:`MOST_SEEDS`.
    """

    difference: float
    interval: Interval
    p: float
    verdict: Verdict
    seeds: int | None


def compare(pairs: Sequence[Pair], margin: float) -> list[Comparison]:
    """Compares rows with others; the verdicts together err in at most 5 %.

    Args:
        pairs: a row, the one that it is compared with, and their spread.
        margin: positive; a smaller difference is of no interest.
    """
    claims = [_claims(pair, margin) for pair in pairs]
    best = [min(claim, key=lambda verdict: claim[verdict]) for claim in claims]
    adjusted = holm([claim[verdict] for claim, verdict in zip(claims, best, strict=True)])
    found = []
    for pair, verdict, p in zip(pairs, best, adjusted, strict=True):
        # An interval of a difference is that of a single figure of its variance.
        around = interval(pair.difference, 1, pair.of_difference)
        decided: Verdict = verdict if p <= ALPHA else "undecided"
        seeds = seeds_to_decide(pair.difference, pair.sd, margin) if decided == "undecided" else None
        found.append(Comparison(pair.difference, around, p, decided, seeds))
    return found


def equivalence_power(n: int, sd: float, margin: float, n_rows: int = 2) -> float:
    """Probability that rows without a difference are found equivalent, with ``n`` seeds each.

    Args:
        n: at least 2.
        sd: of a seed's figure.
        margin: positive.
        n_rows: rows whose variance is pooled.
    """
    degrees = n_rows * (n - 1)
    reach = margin / (sd * (2 / n) ** 0.5) if sd > 0 else math.inf
    room = reach - float(stats.t.ppf(1 - ALPHA, degrees))
    return max(0.0, 2 * float(stats.t.cdf(room, degrees)) - 1)


def difference_power(n: int, sd: float, beyond: float, n_rows: int = 2) -> float:
    """Probability that a difference which is ``beyond`` more than the margin is found, with ``n`` seeds each."""
    degrees = n_rows * (n - 1)
    reach = beyond / (sd * (2 / n) ** 0.5) if sd > 0 else math.inf
    return float(stats.t.cdf(reach - float(stats.t.ppf(1 - ALPHA / 2, degrees)), degrees))


def seeds_for_equivalence(sd: float, margin: float, n_rows: int = 2, power: float = POWER) -> int | None:
    """Fewest seeds of each row with which rows without a difference are found equivalent; None beyond the most."""
    return _fewest(lambda n: equivalence_power(n, sd, margin, n_rows) >= power)


def seeds_to_decide(difference: float, sd: float, margin: float, power: float = POWER) -> int | None:
    """Fewest seeds of each of two rows that would decide, were the difference what it seems; None beyond the most."""
    beyond = abs(difference) - margin
    if beyond > 0:
        return _fewest(lambda n: difference_power(n, sd, beyond) >= power)
    # Near one edge of the margin the test at that edge alone decides.
    return _fewest(
        lambda n: (
            equivalence_power(n, sd, margin) >= power and edge_power(n, sd, margin - abs(difference)) >= power
        )
    )


def edge_power(n: int, sd: float, room: float) -> float:
    """Probability that one of the two tests of equivalence holds, where its edge is ``room`` away."""
    degrees = 2 * (n - 1)
    reach = room / (sd * (2 / n) ** 0.5) if sd > 0 else math.inf
    return float(stats.t.cdf(reach - float(stats.t.ppf(1 - ALPHA, degrees)), degrees))


def _fewest(is_enough: Callable[[int], bool]) -> int | None:
    low, high = 1, 2
    while not is_enough(high):
        if high >= MOST_SEEDS:
            return None
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return max(high, 2)


def _claims(pair: Pair, margin: float) -> dict[Verdict, float]:
    """The p-value of each claim, such that each may be made at 5 %."""
    difference, error, degrees = pair.difference, pair.of_difference.sd, pair.of_difference.degrees
    if error == 0:
        return {
            "better": float(difference > -margin),
            "worse": float(difference < margin),
            "equivalent": float(abs(difference) >= margin),
        }

    def below(limit: float) -> float:
        """p-value of the claim that the difference is below a limit."""
        return float(stats.t.cdf((difference - limit) / error, degrees))

    return {
        "better": min(1.0, 2 * below(-margin)),
        "worse": min(1.0, 2 * (1 - below(margin))),
        "equivalent": max(below(margin), 1 - below(-margin)),
    }
