"""What chance would give: forms over depth fitted to random walks, and p-values that say how they were calibrated.

A series of scales is held against random walks in ln y, whose steps are Gaussian and of any size: every statistic is
the r2 of a form's own curve in ln y, which neither a factor on y nor the size of the steps changes, so that one table
of walks serves all series over the same layers. The best of several forms is corrected for by the distribution of the
least p (Westfall & Young 1993), the families of a checkpoint by Holm's procedure (Holm 1979).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

N_WALKS, SEED = 20_000, 0
#: exponents of the offset form; a fixed grid, for series and walks alike
EXPONENTS = tuple(np.linspace(-4.0, 4.0, 33)[np.linspace(-4.0, 4.0, 33) != 0.0].tolist())
_TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class Chance:
    """What random walks say of one family.

    Attributes:
        forms: form to ``r2`` of the series, ``median`` and ``q95`` of the walks' r2, and ``p`` of this form alone,
            ``(1 + hits) / (1 + walks)``.
        p: of the best form, corrected for the number of forms.
        p_family: the same corrected for the number of families.
        error: one standard error of ``p`` from the number of walks.
    """

    forms: dict[str, dict[str, float]]
    p: float
    p_family: float
    error: float

    def as_dict(self) -> dict[str, Any]:
        return {"forms": self.forms, "p": self.p, "p_family": self.p_family, "error": self.error}


def against_chance(families: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> dict[str, Chance]:
    """Holds every family against random walks over the same layers.

    Args:
        families: name to layers ``(n,)``, ascending from 0, and values ``(n,)``.

    Returns:
        Nothing for a family with a value that is not positive, a constant one, or fewer than four layers.
    """
    found: dict[str, tuple[dict[str, dict[str, float]], float]] = {}
    for family, (layers, values) in families.items():
        y = np.asarray(values, dtype=np.float64)
        if len(y) < 4 or not np.isfinite(y).all() or y.min() <= 0 or np.ptp(np.log(y)) < 1e-12:
            continue
        null = null_table(tuple(layers))
        own = {form: float(r2[0]) for form, r2 in statistics(tuple(layers), np.log(y)[None]).items()}
        ranks = {form: null.p(form, np.array([r2]))[0] for form, r2 in own.items()}
        least = min(ranks.values())
        forms = {
            form: {
                "r2": own[form],
                "median": float(np.median(null.r2[form])),
                "q95": float(np.quantile(null.r2[form], 0.95)),
                "p": float(ranks[form]),
            }
            for form in own
        }
        found[family] = (
            forms,
            float((1 + np.sum(null.least_p <= least * (1 + 1e-9))) / (1 + len(null.least_p))),
        )
    corrected = holm([p for _, p in found.values()])
    return {
        family: Chance(forms, p, p_family, float(np.sqrt(p * (1 - p) / N_WALKS)))
        for (family, (forms, p)), p_family in zip(found.items(), corrected, strict=True)
    }


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in the order given (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate([(len(p) - i) * p[k] for i, k in enumerate(order)])
    return np.minimum(corrected, 1.0).tolist()


@dataclass(frozen=True)
class NullTable:
    """Statistics of random walks over some layers.

    Attributes:
        r2: form to ``(walks,)``, ascending.
        least_p: ``(walks,)`` of each walk, the least p over the forms.
    """

    r2: dict[str, np.ndarray]
    least_p: np.ndarray

    def p(self, form: str, r2: np.ndarray) -> np.ndarray:
        """Share of walks that the form fits at least as well, what is asked about counted as one of them."""
        ordered = self.r2[form]
        hits = len(ordered) - np.searchsorted(ordered, r2 * (1 - 1e-12), side="left")
        return (1 + hits) / (1 + len(ordered))


@cache
def null_table(layers: tuple[int, ...]) -> NullTable:
    """The table for these layers; a step over a gap is a step of as many layers."""
    draw = np.random.default_rng(SEED)
    steps = draw.standard_normal((N_WALKS, len(layers) - 1)) * np.sqrt(np.diff(layers))
    walks = np.concatenate([np.zeros((N_WALKS, 1)), steps.cumsum(axis=1)], axis=1)
    found = statistics(layers, walks)
    table = NullTable({form: np.sort(r2) for form, r2 in found.items()}, np.empty(0))
    # A walk is its own hit, which stands for the one that p adds to a series'.
    ranks = [table.p(form, r2) - 1 / (1 + N_WALKS) for form, r2 in found.items()]
    return NullTable(table.r2, np.min(ranks, axis=0))


def statistics(layers: tuple[int, ...], z: np.ndarray) -> dict[str, np.ndarray]:
    """r2 in ln y of every form that so many layers allow.

    Args:
        layers: of the values.
        z: ``(m, n)`` logarithms.

    Returns:
        Form to ``(m,)``. ``linear`` and ``exponential`` are one straight line in ln y, a first-order change of y
        being one of ln y.
    """
    x = np.asarray(layers, dtype=np.float64)
    z = z - z.mean(axis=1, keepdims=True)
    total = np.maximum(np.square(z).sum(axis=1), _TINY)
    found = {
        form: 1 - residual(x, z) / total for form, (least, residual) in _FORMS.items() if len(x) >= least
    }
    return {form: np.clip(r2, 0.0, 1.0) for form, r2 in found.items()}


def _line(u: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Residual sum of squares ``(m,)`` of z, centred, on a straight line in u."""
    centred = u - u.mean()
    return np.square(z).sum(axis=1) - np.square(z @ centred) / float(centred @ centred)


def _offset(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    return np.min([_line((x + 1) ** c, z) for c in EXPONENTS], axis=0)


def _piecewise(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """The best split; as in :func:`app.analysis.gamma_fits.fit_piecewise`, from L + 1 = 3 to n − 4."""
    residuals = []
    for split in range(3, len(x) - 3):
        left = x + 1 < split
        if min(left.sum(), (~left).sum()) >= 2:
            parts = [z[:, side] - z[:, side].mean(axis=1, keepdims=True) for side in (left, ~left)]
            residuals.append(_line(x[left], parts[0]) + _line(x[~left], parts[1]))
    return np.min(residuals, axis=0) if residuals else np.square(z).sum(axis=1)


#: form to the least number of layers it is fitted to, and its residual in ln y
_FORMS: dict[str, tuple[int, Callable[[np.ndarray, np.ndarray], np.ndarray]]] = {
    "linear": (4, _line),
    "power": (4, lambda x, z: _line(np.log(x + 1), z)),
    "exponential": (4, _line),
    "power_offset": (5, _offset),
    "piecewise": (7, _piecewise),
}


def written(p: float, digits: int = 3) -> str:
    """A p-value for a person; one that rounds to nothing is said to be less than what can be written."""
    least = 10.0**-digits
    return f"p < {least:.{digits}f}" if p < least else f"p {p:.{digits}f}"
