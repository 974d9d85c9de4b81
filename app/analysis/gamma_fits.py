"""Forms that a positive quantity may follow over depth, fitted and compared.

x is the layer L counted from 0; ``L1`` stands for L + 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

#: parameters of each form, the place of the split included
N_PARAMETERS = {"linear": 2, "power": 2, "exponential": 2, "power_offset": 3, "piecewise": 5}
#: exponents from which the power with offset is sought
OFFSET_STARTS = (-1.0, 0.5, 1.0, 2.0)
#: a relative spread that is rounding and no trend
CONSTANT = 1e-12
_ROUNDING = np.finfo(np.float64).eps


@dataclass(frozen=True)
class GammaFit:
    """One form fitted to one series.

    Attributes:
        form: its name.
        parameters: by name; empty where undefined.
        r2: coefficient of determination on y; None where undefined.
        r2_log: the same on ln y, the scale on which forms compare fairly; None where a fitted value is not positive.
        aicc: Akaike's criterion for small samples from the residuals of ln y, ``n ln(RSS/n) + 2k + 2k(k+1)/(n−k−1)``
            (Hurvich & Tsai 1989); None where ``r2_log`` is. Less is better.
        fitted: values at the series' own x.
        undefined: why there is no fit; empty where there is one.
        masked: points that have no logarithm and were left out of the fit.
    """

    form: str
    parameters: dict[str, float] = field(default_factory=dict)
    r2: float | None = None
    r2_log: float | None = None
    aicc: float | None = None
    fitted: tuple[float, ...] = ()
    undefined: str = ""
    masked: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "form": self.form,
            "parameters": dict(self.parameters),
            "r2": self.r2,
            "r2_log": self.r2_log,
            "aicc": self.aicc,
            "fitted": list(self.fitted),
            "undefined": self.undefined,
            "masked": self.masked,
        }


Series = Sequence[float] | np.ndarray


def fit_linear(L: Series, y: Series) -> GammaFit:
    """``a + b L``, on y."""

    def solve(x: np.ndarray, y: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
        a, b = _line(x, y)
        return {"a": a, "b": b}, a + b * x

    return _fit("linear", L, y, solve)


def fit_power(L1: Series, y: Series) -> GammaFit:
    """``a (L+1)^b``, on ln y over ln(L+1); values that are not positive are left out, and counted."""

    def solve(x: np.ndarray, y: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
        a, b = _line(np.log(x), np.log(y))
        return {"a": float(np.exp(a)), "b": b}, np.exp(a) * x**b

    x, values = np.asarray(L1, dtype=np.float64), np.asarray(y, dtype=np.float64)
    kept = ~(values <= 0)  # what is no number stays, and is refused by name
    fit = _fit("power", x[kept], values[kept], solve, needs_positive=True)
    masked = int((~kept).sum())
    if masked and not fit.undefined:
        fitted = fit.parameters["a"] * x ** fit.parameters["b"]
        return replace(fit, fitted=tuple(fitted.tolist()), r2_log=None, aicc=None, masked=masked)
    return replace(fit, masked=masked)


def fit_exponential(L: Series, y: Series) -> GammaFit:
    """``a e^{bL}``, on ln y."""

    def solve(x: np.ndarray, y: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
        a, b = _line(x, np.log(y))
        return {"a": float(np.exp(a)), "b": b}, np.exp(a + b * x)

    return _fit("exponential", L, y, solve, needs_positive=True)


def fit_power_offset(L1: Series, y: Series) -> GammaFit:
    """``a + b (L+1)^c`` by non-linear least squares on y, the best of four starts.

    For a given c the best a and b are a straight line's, so that c alone is sought (variable projection, Golub &
    Pereyra 1973).
    """

    def solve(x: np.ndarray, y: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
        logs, y_mean = np.log(x), float(y.mean())
        y_centred = y - y_mean

        def slope(c: float) -> tuple[float, np.ndarray, float]:
            u = np.exp(min(max(c, -20.0), 20.0) * logs)
            u_mean = float(u.sum()) / len(u)
            centred = u - u_mean
            spread = float(centred @ centred)
            return (float(centred @ y_centred) / spread if spread > 0 else 0.0), centred, u_mean

        def residuals(c: np.ndarray) -> np.ndarray:
            b, centred, _ = slope(float(c[0]))
            return b * centred - y_centred

        from scipy.optimize import leastsq  # half a second, which nothing but a fit needs

        ends = [leastsq(residuals, [start], maxfev=100, full_output=True)[0] for start in OFFSET_STARTS]
        errors = [float(np.square(residuals(end)).sum()) for end in ends]
        c = float(np.clip(ends[int(np.argmin(errors))][0], -20.0, 20.0))
        b, centred, u_mean = slope(c)
        return {"a": y_mean - b * u_mean, "b": b, "c": c}, y_mean + b * centred

    return _fit("power_offset", L1, y, solve)


def fit_piecewise(L1: Series, y: Series) -> GammaFit:
    """``a1 e^{b1 (L+1)}`` below a split s, ``a2 e^{b2 (L+1)}`` from it on, each on ln y of its side.

    s runs from 3 to n − 4; the one with the highest r2 on y counts, the first on ties.
    """

    def solve(x: np.ndarray, y: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
        logs = np.log(y)
        splits = np.arange(3, len(x) - 3)
        left = x[None] < splits[:, None]  # (splits, n)
        has_both = (left.sum(axis=1) >= 2) & ((~left).sum(axis=1) >= 2)
        splits, left = splits[has_both], left[has_both]
        if not len(splits):
            raise ValueError("no split leaves two points on either side")
        sides = [_lines(x, logs, side) for side in (left, ~left)]
        fitted = np.exp(np.where(left, *(a[:, None] + b[:, None] * x for a, b in sides)))
        best = int(np.argmin(np.square(fitted - y).sum(axis=1)))
        (a1, b1), (a2, b2) = ((float(a[best]), float(b[best])) for a, b in sides)
        names = {"a1": float(np.exp(a1)), "b1": b1, "a2": float(np.exp(a2)), "b2": b2}
        return {"split": float(splits[best]), **names}, fitted[best]

    return _fit("piecewise", L1, y, solve, needs_positive=True)


#: every form as a function of layers counted from 0, and values
FORMS: dict[str, Callable[[np.ndarray, np.ndarray], GammaFit]] = {
    "linear": fit_linear,
    "power": lambda L, y: fit_power(L + 1, y),
    "exponential": fit_exponential,
    "power_offset": lambda L, y: fit_power_offset(L + 1, y),
    "piecewise": lambda L, y: fit_piecewise(L + 1, y),
}


def fit_all(L: Series, y: Series) -> dict[str, GammaFit]:
    """Every form, by name.

    Args:
        L: ``(n,)`` layers counted from 0.
        y: ``(n,)`` values.
    """
    layers, values = np.asarray(L, dtype=np.float64), np.asarray(y, dtype=np.float64)
    return {form: fit(layers, values) for form, fit in FORMS.items()}


def best_form(fits: dict[str, GammaFit]) -> str | None:
    """The form with the least ``aicc``; None where no form has one."""
    scored = [(fit.aicc, form) for form, fit in fits.items() if fit.aicc is not None]
    return min(scored)[1] if scored else None


Solve = Callable[[np.ndarray, np.ndarray], tuple[dict[str, float], np.ndarray]]


def points_needed(form: str) -> int:
    """How many points a form is fitted to at least: two more than it has parameters."""
    return N_PARAMETERS[form] + 2


def _fit(form: str, x: Series, y: Series, solve: Solve, needs_positive: bool = False) -> GammaFit:
    """One form with its scores, or why there is none."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    k = N_PARAMETERS[form]
    if len(y) < points_needed(form):
        return GammaFit(form, undefined=f"only {len(y)} points; {k} parameters need {points_needed(form)}")
    if not np.isfinite(y).all():
        return GammaFit(form, undefined="a value is not finite")
    if np.ptp(y) <= CONSTANT * np.abs(y).max():
        return GammaFit(form, undefined="the series is constant")
    if needs_positive and y.min() <= 0:
        return GammaFit(form, undefined="a value is not positive, so that it has no logarithm")
    try:
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            parameters, fitted = solve(x, y)
            r2 = _r2(y, fitted)
    except (ArithmeticError, ValueError) as error:
        return GammaFit(form, undefined=str(error))
    r2_log = aicc = None
    if fitted.min() > 0 and y.min() > 0:
        residuals = np.log(y) - np.log(fitted)
        r2_log = _r2(np.log(y), np.log(fitted))
        n = len(y)
        mean_square = max(
            float(residuals @ residuals) / n, _ROUNDING**2
        )  # an exact fit is exact up to rounding
        aicc = float(n * np.log(mean_square) + 2 * k + 2 * k * (k + 1) / (n - k - 1))
    return GammaFit(form, parameters, r2, r2_log, aicc, tuple(fitted.tolist()))


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Intercept and slope of the least-squares line; level where all x are the same."""
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ (y - y.mean())) / spread if spread > 0 else 0.0
    return float(y.mean()) - slope * float(x.mean()), slope


def _lines(x: np.ndarray, y: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intercepts and slopes ``(m,)`` of the lines through ``m`` choices ``(m, n)`` of points."""
    counts = chosen.sum(axis=1)
    x_mean, y_mean = (chosen @ values / counts for values in (x, y))
    x_off = (x - x_mean[:, None]) * chosen
    slopes = (x_off * (y - y_mean[:, None])).sum(axis=1) / np.square(x_off).sum(axis=1)
    return y_mean - slopes * x_mean, slopes


def _r2(y: np.ndarray, fitted: np.ndarray) -> float:
    deviations = y - y.mean()
    return 1.0 - float(np.sum((y - fitted) ** 2)) / float(deviations @ deviations)
