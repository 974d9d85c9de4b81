"""The attention temperature that gains imply, and the cooling laws it is held against."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from app.analysis.gamma_fits import Series, fit_exponential

HAJEK_BOUNDS = (1.0, 1e4)


def original_temperature(gamma: Series) -> np.ndarray | None:
    """``T(L)/T(0) = γ(0)/γ(L)``; None where a gain is not positive or a ratio is no finite number.

    Args:
        gamma: ``(n,)``.
    """
    gamma = np.asarray(gamma, dtype=np.float64)
    if len(gamma) == 0 or not gamma.min() > 0:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        temperature = gamma[0] / gamma
    return temperature if np.isfinite(temperature).all() else None


def logit_temperature(gamma: Series, query: Series, key: Series) -> np.ndarray | None:
    """``T(L)/T(0)`` for ``T ∝ 1 / (γ² ‖W_q‖ ‖W_k‖)``: without a norm on queries and keys, logits scale with both.

    Args:
        gamma: ``(n,)`` gain of the norm before attention.
        query: ``(n,)`` scale of the query projection.
        key: ``(n,)`` scale of the key projection.
    """
    with np.errstate(over="ignore"):  # of which the temperature is then none
        return original_temperature(np.square(gamma) * np.asarray(query) * np.asarray(key))


@dataclass(frozen=True)
class Cooling:
    """A cooling law fitted to a temperature.

    Attributes:
        law: ``kirkpatrick`` (geometric: ``ln T = a + b L``, r2 in log space; Kirkpatrick et al. 1983) or ``hajek``
            (``T = c / ln(L + c2)``, 1 < c2 ≤ 1e4, r2 on T; Hajek 1988).
        parameters: by name.
        r2: see ``law``.
        fitted: temperatures.
        note: a bound that was reached; else empty.
        undefined: why there is no fit; empty where there is one.
    """

    law: str
    parameters: dict[str, float]
    r2: float | None
    fitted: tuple[float, ...]
    note: str = ""
    undefined: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {
            "law": self.law,
            "parameters": dict(self.parameters),
            "r2": self.r2,
            "fitted": list(self.fitted),
            "note": self.note,
            "undefined": self.undefined,
        }


def fit_kirkpatrick(L: Series, temperature: Series) -> Cooling:
    """The geometric law: the exponential fit of the gain with its sign flipped.

    Args:
        L: ``(n,)`` layers counted from 0.
        temperature: ``(n,)``, positive.
    """
    fit = fit_exponential(L, temperature)
    if fit.undefined:
        return Cooling("kirkpatrick", {}, None, (), undefined=fit.undefined)
    parameters = {"a": float(np.log(fit.parameters["a"])), "b": fit.parameters["b"]}
    return Cooling("kirkpatrick", parameters, fit.r2_log, fit.fitted)


def fit_hajek(L: Series, temperature: Series) -> Cooling:
    """The logarithmic law, by least squares on T; for a given c2 the best c has a closed form.

    Args:
        L: ``(n,)`` layers counted from 0.
        temperature: ``(n,)``, positive.
    """
    L, T = np.asarray(L, dtype=np.float64), np.asarray(temperature, dtype=np.float64)
    # few points, a constant, a value that is not positive, one whose square is no number
    problem = fit_exponential(L, T).undefined or ("" if T.max() < 1e150 else "a value is too large")
    if problem:
        return Cooling("hajek", {}, None, (), undefined=problem)

    def at(log_excess: float) -> tuple[float, np.ndarray]:
        shape = 1 / np.log(L + 1 + np.exp(log_excess))
        c = float(shape @ T) / float(shape @ shape)
        return c, c * shape

    def error(log_excess: float) -> float:
        return float(np.sum((at(log_excess)[1] - T) ** 2))

    low, high = np.log(1e-6), np.log(HAJEK_BOUNDS[1] - 1)  # of c2 − 1
    grid = np.linspace(low, high, 200)
    start = int(np.argmin([error(point) for point in grid]))
    bracket = grid[max(start - 1, 0)], grid[min(start + 1, len(grid) - 1)]
    found = float(minimize_scalar(error, bounds=bracket, method="bounded").x)
    c, fitted = at(found)
    c2 = 1 + float(np.exp(found))
    note = ""
    if c2 > HAJEK_BOUNDS[1] * 0.99:
        note = f"c2 reached its upper bound {HAJEK_BOUNDS[1]:g}: there is no cooling of this form"
    elif c2 - 1 < 1.1e-6:
        note = (
            f"c2 reached its lower bound {HAJEK_BOUNDS[0]:g}: the first layer is infinitely hot in this form"
        )
    r2 = 1 - error(found) / float(np.sum((T - T.mean()) ** 2))
    return Cooling("hajek", {"c": c, "c2": c2}, r2, tuple(fitted.tolist()), note)
