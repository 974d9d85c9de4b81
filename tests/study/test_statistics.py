"""Intervals, corrections, verdicts and power, against values known otherwise."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from app.study.calibration import calibrate
from app.study.multiplier import Point, is_within_a_decade, multiplier
from app.study.resampling import resampled
from app.study.statistics import Pooled, holm, interval, pooled, prediction, spreads
from app.study.verdicts import (
    Pair,
    compare,
    difference_power,
    equivalence_power,
    seeds_for_equivalence,
    seeds_to_decide,
)


def test_the_variance_is_pooled_over_rows() -> None:
    groups = [[1.0, 2.0, 3.0], [5.0, 5.0], [7.0]]
    spread = pooled(groups)
    assert spread == Pooled(pytest.approx(2.0 / 3), 3)  # type: ignore[comparison-overlap]
    with pytest.raises(ValueError, match="two seeds"):
        pooled([[1.0], [2.0]])


def test_an_interval_of_one_row_is_students() -> None:
    figures = [1.51, 1.49, 1.53, 1.50]
    found = interval(float(np.mean(figures)), 4, pooled([figures]))
    expected = stats.t.interval(0.95, 3, np.mean(figures), stats.sem(figures))
    assert tuple(found) == pytest.approx(expected)
    wider = prediction(float(np.mean(figures)), 4, pooled([figures]))
    assert (wider.high - wider.low) / (found.high - found.low) == pytest.approx(5**0.5)


NARROW, WIDE = [1.50, 1.51, 1.49, 1.505, 1.495], [1.40, 1.62, 1.55, 1.31, 1.58]


def test_rows_of_five_seeds_are_judged_by_their_own_variance() -> None:
    assert spreads([NARROW, WIDE]) == [pooled([NARROW]), pooled([WIDE])]
    # Fewer tell too little of their own spread, and have that of all rows.
    everywhere = pooled([NARROW, WIDE[:4]])
    assert spreads([NARROW, WIDE[:4]]) == [pooled([NARROW]), everywhere]
    assert spreads([NARROW[:3], WIDE[:3]]) == [pooled([NARROW[:3], WIDE[:3]])] * 2


def test_two_variances_are_joined_as_welch_did() -> None:
    narrow, wide = spreads([NARROW, WIDE])
    pair = Pair(float(np.mean(NARROW)), 5, float(np.mean(WIDE)), 5, narrow, wide)
    (found,) = compare([pair], 0.001)
    expected = stats.ttest_ind(NARROW, WIDE, equal_var=False).confidence_interval()
    assert tuple(found.interval) == pytest.approx((expected.low, expected.high))
    assert pair.sd == pytest.approx(((np.var(NARROW, ddof=1) + np.var(WIDE, ddof=1)) / 2) ** 0.5)


def test_holm_adjusts_in_order() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [(-0.05, "better"), (0.05, "worse"), (0.0, "equivalent"), (-0.013, "undecided"), (0.007, "undecided")],
)
def test_verdicts_at_a_margin(difference: float, verdict: str) -> None:
    (found,) = compare([Pair(1.5 + difference, 30, 1.5, 30, Pooled(0.01**2, 58))], 0.01)
    assert found.verdict == verdict
    assert (found.seeds is None) == (verdict != "undecided")
    assert found.interval.low < difference < found.interval.high


def test_a_difference_without_spread_is_what_it_is() -> None:
    spread = Pooled(0.0, 4)
    found = compare([Pair(mean, 3, 1.5, 3, spread) for mean in (1.4, 1.495, 1.6, 1.51)], 0.01)
    assert [c.verdict for c in found][:3] == ["better", "equivalent", "worse"]


def test_many_comparisons_ask_for_more() -> None:
    better, equal = (Pair(mean, 3, 1.5, 3, Pooled(0.01**2, 100)) for mean in (1.47, 1.5))
    (alone,) = compare([better], 0.005)
    among = compare([better, *[equal] * 40], 0.005)
    assert alone.verdict == "better"
    assert among[0].p > alone.p


def test_seeds_that_a_plan_needs() -> None:
    assert equivalence_power(20, 0.01, 0.01) == pytest.approx(0.85, abs=0.02)
    needed = seeds_for_equivalence(0.023, 0.01)
    assert needed is not None and 85 <= needed <= 95
    assert equivalence_power(needed, 0.023, 0.01) >= 0.8 > equivalence_power(needed - 1, 0.023, 0.01)
    assert seeds_for_equivalence(1.0, 0.001) is None
    assert seeds_for_equivalence(0.0, 0.01) == 2
    decided = seeds_to_decide(-0.03, 0.01, 0.01)
    assert decided is not None
    assert difference_power(decided, 0.01, 0.02) >= 0.8 > difference_power(decided - 1, 0.01, 0.02)
    assert seeds_to_decide(0.01, 0.01, 0.01) is None  # at the margin nothing decides


def law(flops: float) -> float:
    return 1.1 + 0.6 * (flops / 1e14) ** -0.3


LADDER = [Point(float(c), law(float(c)), 3) for c in np.geomspace(1e14, 1e15, 6)]
SPREAD = Pooled(1e-3**2, 14)


@pytest.mark.parametrize("truth", [0.5, 1.0, 2.0])
def test_a_planted_multiplier_is_found(truth: float) -> None:
    found = multiplier(LADDER, Point(4e14, law(truth * 4e14), 3), SPREAD)
    assert found.value == pytest.approx(truth, rel=0.005)
    assert found.interval.low < truth < found.interval.high
    assert found.excludes_one == (truth != 1)


def test_nothing_is_said_beyond_the_ladder() -> None:
    far = multiplier(LADDER, Point(4e14, 1.0, 3), SPREAD)
    assert (str(far), far.range) == ("> 2.5", "> 2.5 to > 2.5")
    assert far.value == math.inf
    near = multiplier(LADDER, Point(4e14, 2.0, 3), SPREAD)
    assert (str(near), near.range) == ("< 0.25", "< 0.25 to < 0.25")
    edge = multiplier(LADDER, Point(4e14, law(1e15), 3), SPREAD)
    assert edge.interval.high == math.inf
    assert edge.interval.low < 2.5


def test_a_ladder_that_noise_has_turned_round_is_still_monotone() -> None:
    losses = [1.70, 1.60, 1.61, 1.50, 1.45, 1.44]
    ladder = [Point(rung.flops, loss, 3) for rung, loss in zip(LADDER, losses, strict=True)]
    found = [
        multiplier(ladder, Point(4e14, loss, 3), Pooled(1e-8, 14)).value
        for loss in np.linspace(1.69, 1.45, 20)
    ]
    assert all(a <= b for a, b in itertools.pairwise(found))


def test_a_ladder_of_few_sizes_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 6 sizes, this one has 5"):
        multiplier(LADDER[:5], LADDER[0], SPREAD)
    assert is_within_a_decade(LADDER)
    assert not is_within_a_decade([LADDER[0], Point(1.1e15, 1.0, 3)])


def test_a_pool_of_runs_is_resampled() -> None:
    generator = np.random.default_rng(0)
    rows = {
        f"size_{i}": {"flops": point.flops, "figures": {str(s): point.loss + 0.01 * e for s, e in enumerate(generator.standard_normal(24))}}
        for i, point in enumerate(LADDER)
    }  # fmt: skip
    found = list(resampled({"rows": rows, "margin": 0.01}, 20))
    assert len(found) == 6
    assert all(f.share > 0.75 if "interval" in f.what else f.share < 0.25 for f in found)
    del rows["size_0"]
    with pytest.raises(ValueError, match="a pool needs 6 rows of 12 seeds, this one has 5"):
        next(resampled({"rows": rows, "margin": 0.01}))


@pytest.mark.stress
def test_the_statistics_keep_their_promises() -> None:
    assert [finding.what for finding in calibrate() if not finding.is_kept] == []


def test_a_short_calibration_keeps_them_too() -> None:
    found = list(calibrate(20))
    assert len(found) == 28
    assert [finding.what for finding in found if not finding.is_kept] == []
