"""What random walks say of a series over depth, and that they say it as often as they claim."""

import numpy as np
import pytest

from app.analysis import gamma_null
from app.analysis.gamma_fits import fit_exponential, fit_power
from app.analysis.gamma_null import N_WALKS, against_chance, holm, null_table, statistics, written

LAYERS = tuple(range(16))


def walks(n_series: int, layers: tuple[int, ...], seed: int, steps: str = "gaussian") -> np.ndarray:
    draw = np.random.default_rng(seed)
    shape = n_series, len(layers) - 1
    if steps == "gaussian":
        taken = draw.standard_normal(shape)
    elif steps == "t3":
        taken = draw.standard_t(3, shape)
    else:  # drawn again from a series' own steps
        own = draw.standard_t(5, shape)
        taken = np.take_along_axis(own - own.mean(1, keepdims=True), draw.integers(0, shape[1], shape), 1)
    taken = taken * np.sqrt(np.diff(layers))
    return np.concatenate([np.zeros((n_series, 1)), taken.cumsum(1)], axis=1)


def share_found(
    layers: tuple[int, ...], n_series: int, steps: str = "gaussian", level: float = 0.05
) -> float:
    """How often a walk is taken for a trend at this level."""
    null = null_table(layers)
    found = statistics(layers, walks(n_series, layers, seed=11, steps=steps))
    least = np.min([null.p(form, r2) for form, r2 in found.items()], axis=0)
    p = (1 + (null.least_p[None] <= least[:, None] * (1 + 1e-9)).sum(1)) / (1 + N_WALKS)
    return float((p <= level).mean())


@pytest.mark.parametrize("layers", [tuple(range(12)), (0, 1, 2, 5, 8, 9, 13, 17)])
def test_a_walk_is_taken_for_a_trend_as_often_as_said(layers: tuple[int, ...]) -> None:
    # 2,000 series: a standard error of 0.005.
    assert share_found(layers, 2_000) == pytest.approx(0.05, abs=0.015)
    assert share_found(layers, 2_000, level=0.5) == pytest.approx(0.5, abs=0.035)


@pytest.mark.stress
@pytest.mark.parametrize("n", [12, 24, 36])
def test_calibration(n: int, capsys: pytest.CaptureFixture[str]) -> None:
    layers = tuple(range(n))
    shares = {steps: share_found(layers, 5_000, steps) for steps in ("gaussian", "t3", "resampled")}
    with capsys.disabled():
        print(
            f"\nn {n}: P(p <= 0.05) " + ", ".join(f"{steps} {share:.4f}" for steps, share in shares.items())
        )
    assert 0.04 <= shares["gaussian"] <= 0.06


def test_a_trend_is_told_from_a_walk_whatever_the_unit_of_y_and_the_size_of_the_steps() -> None:
    draw = np.random.default_rng(3)
    trend, walk = 0.1 * np.arange(16) + 0.02 * draw.normal(size=16), np.cumsum(0.1 * draw.normal(size=16))
    found = against_chance({"trend": (LAYERS, np.exp(trend)), "walk": (LAYERS, np.exp(walk))})
    assert found["trend"].p < 0.005 < 0.05 < found["walk"].p
    scaled = against_chance(
        {"trend": (LAYERS, 1e-3 * np.exp(7 * trend)), "walk": (LAYERS, np.exp(walk / 50))}
    )
    for family in found:
        assert scaled[family].p == pytest.approx(found[family].p, abs=1e-9)
    for chance in found.values():
        for scores in chance.forms.values():
            assert 0 <= scores["median"] < scores["q95"] < 1
            assert 1 / (1 + N_WALKS) <= scores["p"] <= 1
        assert min(scores["p"] for scores in chance.forms.values()) < chance.p  # five forms were looked at


def test_no_walk_at_all_does_as_well() -> None:
    (chance,) = against_chance({"line": (LAYERS, np.exp(0.1 * np.arange(16)))}).values()
    assert chance.forms["exponential"]["p"] == pytest.approx(1 / (1 + N_WALKS))
    assert (
        1 / (1 + N_WALKS) < chance.p <= 6 / (1 + N_WALKS)
    )  # the best walk of each form did as well by its own


def test_a_longer_gap_is_a_longer_walk() -> None:
    """Over layers 0, 1, 2, 30 a walk goes as far in its last step as in 28: equal steps would be no null."""
    layers = (0, 1, 2, 3, 30)
    assert np.median(null_table(layers).r2["exponential"]) > np.median(
        null_table(tuple(range(5))).r2["exponential"]
    )


def test_statistics_are_those_of_the_fits() -> None:
    y = np.exp(walks(1, LAYERS, seed=5)[0])
    found = statistics(LAYERS, np.log(y)[None])
    layers = np.arange(16)
    assert found["exponential"][0] == pytest.approx(fit_exponential(layers, y).r2_log)
    assert found["power"][0] == pytest.approx(fit_power(layers + 1, y).r2_log)
    assert found["power_offset"][0] >= found["power"][0] * 0.98
    assert found["piecewise"][0] >= found["exponential"][0]
    for n, forms in ((4, 3), (5, 4), (6, 4), (7, 5)):
        assert len(statistics(tuple(range(n)), walks(2, tuple(range(n)), 0))) == forms


def test_what_has_no_logarithm_or_no_trend_is_left_out() -> None:
    families = {
        "few": ((0, 1, 2), [1.0, 2.0, 3.0]),
        "zero": (LAYERS, [0.0] + [1.0] * 15),
        "flat": (LAYERS, [2.0] * 16),
    }
    assert against_chance(families) == {}


def test_many_families_are_corrected_for() -> None:
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.4, 0.6]) == pytest.approx([0.8, 0.8])
    assert holm([]) == []
    draw = np.random.default_rng(1)
    families = {str(i): (LAYERS, np.exp(np.cumsum(draw.normal(size=16)))) for i in range(8)}
    found = against_chance(families)
    assert [chance.p_family for chance in found.values()] == holm([chance.p for chance in found.values()])


def test_how_a_small_p_is_written() -> None:
    assert written(0.0302) == "p 0.030"
    assert written(0.0004) == "p < 0.001"
    assert written(0.004, 2) == "p < 0.01"
    assert gamma_null.N_WALKS >= 10_000
