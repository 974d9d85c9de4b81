"""The five forms, the cooling laws and the null, against the fixture and against series that are known."""

import json
import math
from typing import Any

import numpy as np
import pytest

from app.analysis.gamma import fit_hajek, fit_kirkpatrick, original_temperature
from app.analysis.gamma_fits import (
    GammaFit,
    best_form,
    fit_all,
    fit_exponential,
    fit_linear,
    fit_piecewise,
    fit_power,
    fit_power_offset,
)
from app.analysis.gamma_temperature import logit_temperature
from tests.parity import FIXTURES

CASES = json.loads((FIXTURES / "gamma_fits.json").read_text())
L = np.arange(24)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_equals_the_fixture(case: dict[str, Any]) -> None:
    layers, y = np.arange(len(case["y"])), np.array(case["y"])
    fits = fit_all(layers, y)
    for form in ("linear", "power", "exponential", "piecewise"):
        expected = case["fits"][form]
        fit = fits[form]
        parameters = {name: value for name, value in expected.items() if name not in ("r2", "yhat")}
        assert fit.parameters == pytest.approx(parameters, rel=1e-9)
        assert fit.r2 == pytest.approx(expected["r2"], rel=1e-9)
        np.testing.assert_allclose(fit.fitted, expected["yhat"], rtol=1e-9)
    temperature = original_temperature(y)
    assert temperature is not None
    np.testing.assert_allclose(temperature, case["temperature"], rtol=1e-12)
    law = fit_kirkpatrick(layers, temperature)
    expected = case["fits"]["kirkpatrick"]
    assert law.parameters == pytest.approx({"a": expected["a"], "b": expected["b"]}, rel=1e-9)
    assert law.r2 == pytest.approx(expected["r2"], rel=1e-9)
    # The law is the exponential fit of the gain with its sign flipped.
    assert law.parameters["b"] == pytest.approx(-fits["exponential"].parameters["b"])


def test_known_series_are_found_again() -> None:
    assert fit_linear(L, 2 + 0.5 * L).parameters == pytest.approx({"a": 2, "b": 0.5})
    assert fit_power(L + 1, 3 * (L + 1) ** 0.4).parameters == pytest.approx({"a": 3, "b": 0.4})
    assert fit_exponential(L, 0.7 * np.exp(-0.1 * L)).parameters == pytest.approx({"a": 0.7, "b": -0.1})
    left, right = 0.9 * np.exp(0.02 * (L + 1)), 0.3 * np.exp(0.15 * (L + 1))
    found = fit_piecewise(L + 1, np.where(L + 1 < 10, left, right)).parameters
    assert found == pytest.approx({"split": 10, "a1": 0.9, "b1": 0.02, "a2": 0.3, "b2": 0.15})


@pytest.mark.parametrize(
    ("a", "b", "c"), [(1.0, 0.2, 1.7), (0.5, 2.0, -1.3), (3.0, -0.7, 0.3), (-1.0, 2.0, 0.6)]
)
def test_a_power_with_offset_is_found_from_one_of_the_starts(a: float, b: float, c: float) -> None:
    fit = fit_power_offset(L + 1, a + b * (L + 1.0) ** c)
    assert fit.parameters == pytest.approx({"a": a, "b": b, "c": c}, rel=1e-4)
    assert fit.r2 == pytest.approx(1)


def test_scores_are_what_they_say() -> None:
    y = np.array(CASES[0]["y"])
    for form, fit in fit_all(L, y).items():
        k = {"linear": 2, "power": 2, "exponential": 2, "power_offset": 3, "piecewise": 5}[form]
        residuals = np.log(y) - np.log(fit.fitted)
        rss, n = float(residuals @ residuals), len(y)
        assert fit.aicc == pytest.approx(n * math.log(rss / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1))
        spread = np.log(y) - np.log(y).mean()
        assert fit.r2_log == pytest.approx(1 - rss / float(spread @ spread))
    assert best_form(fit_all(L, y)) == "exponential"


def test_a_fitted_value_that_is_not_positive_never_wins() -> None:
    y = np.exp(-0.9 * np.arange(12))  # the line through it ends below zero
    fits = fit_all(np.arange(12), y)
    assert fits["linear"].r2 is not None
    assert fits["linear"].r2_log is fits["linear"].aicc is None
    assert best_form({"linear": fits["linear"]}) is None


UNDEFINED = {
    "constant": ([2.0] * 24, {"linear", "power", "exponential", "power_offset", "piecewise"}),
    "nearly constant": (
        [1 + 1e-16 * n for n in range(24)],
        {"linear", "power", "exponential", "power_offset", "piecewise"},
    ),
    "a zero": ([*[1.0, 2.0] * 11, 0.0, 1.0], {"exponential", "piecewise"}),
    "negative": ([*[1.0, 2.0] * 11, -1.0, 1.0], {"exponential", "piecewise"}),
    "not finite": (
        [*[1.0, 2.0] * 11, math.nan, 1.0],
        {"linear", "power", "exponential", "power_offset", "piecewise"},
    ),
    "six points": ([1.0, 2.0, 1.5, 3.0, 2.0, 4.0], {"piecewise"}),
    "four points": ([1.0, 2.0, 1.5, 3.0], {"power_offset", "piecewise"}),
    "three points": ([1.0, 2.0, 1.5], {"linear", "power", "exponential", "power_offset", "piecewise"}),
    "none": ([], {"linear", "power", "exponential", "power_offset", "piecewise"}),
}


@pytest.mark.parametrize("name", UNDEFINED)
def test_what_cannot_be_fitted_says_why_and_is_never_nan(name: str) -> None:
    y, undefined = UNDEFINED[name]
    fits = fit_all(np.arange(len(y)), y)
    assert {form for form, fit in fits.items() if fit.undefined} == undefined
    json.dumps([fit.as_dict() for fit in fits.values()], allow_nan=False)
    for fit in fits.values():
        assert bool(fit.undefined) == (fit.r2 is None) == (not fit.parameters)
    for law in (fit_kirkpatrick(np.arange(len(y)), y), fit_hajek(np.arange(len(y)), y)):
        json.dumps(law.as_dict(), allow_nan=False)


def test_the_logarithmic_law_and_its_bounds() -> None:
    law = fit_hajek(L, 1.7 / np.log(L + 3.5))
    assert law.parameters == pytest.approx({"c": 1.7, "c2": 3.5}, rel=1e-3)
    assert law.r2 == pytest.approx(1, abs=1e-6)
    assert not law.note
    assert "upper bound" in fit_hajek(L, 1 + 0.01 * L).note
    assert "lower bound" in fit_hajek(L, np.where(L == 0, 1e7, 1.0 / np.log(L + 1.5))).note


@pytest.mark.parametrize(
    ("c2", "is_noted"), [(5_000.0, False), (9_800.0, False), (9_990.0, True), (3e4, True)]
)
def test_the_upper_bound_of_the_logarithmic_law_is_ten_thousand(c2: float, is_noted: bool) -> None:
    far = np.arange(0.0, 4e5, 1e4)  # so far that the bend of ln(L + c2) can be seen
    law = fit_hajek(far, 1.7 / np.log(far + c2))
    assert law.parameters["c2"] == pytest.approx(min(c2, 1e4), rel=2e-3)
    assert law.parameters["c2"] <= 1e4 * (1 + 1e-9)
    assert ("upper bound 10000" in law.note) == is_noted


def test_the_power_form_leaves_out_what_has_no_logarithm() -> None:
    y = 2.0 * (L + 1) ** 0.5
    y[[2, 5]] = 0.0, -1.0
    fit = fit_power(L + 1, y)
    assert fit.masked == 2
    assert fit.parameters == pytest.approx({"a": 2.0, "b": 0.5})
    assert (fit.r2_log, fit.aicc, len(fit.fitted)) == (None, None, len(L))
    assert fit_power(L[:5] + 1, [1.0, 0.0, -1.0, 2.0, 3.0]).undefined == "only 3 points; 2 parameters need 4"
    assert fit_power(L + 1, 2.0 * (L + 1) ** 0.5).masked == 0


def test_temperature_of_logits_counts_everything_they_scale_with() -> None:
    gamma, query, key = np.array([1.0, 2.0]), np.array([1.0, 3.0]), np.array([2.0, 2.0])
    assert logit_temperature(gamma, query, key) == pytest.approx([1.0, 1 / 12])
    assert original_temperature(gamma) == pytest.approx([1.0, 0.5])
    assert original_temperature([1.0, 0.0]) is None


def test_a_perfect_fit_has_a_finite_score() -> None:
    fit: GammaFit = fit_exponential(L, np.exp(0.125 * L))
    assert fit.aicc is not None
    assert math.isfinite(fit.aicc)
