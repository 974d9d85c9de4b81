"""Gains over depth: how each family of weights changes from layer to layer, and the temperature that this implies."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from app.analysis.gamma_families import ATTENTION_NORMS, QK_GAIN, Scales
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
from app.analysis.gamma_null import Chance, against_chance
from app.analysis.gamma_temperature import (
    Cooling,
    fit_hajek,
    fit_kirkpatrick,
    logit_temperature,
    original_temperature,
)

__all__ = [
    "GammaFit",
    "Gammas",
    "analyse",
    "fit_all",
    "fit_exponential",
    "fit_hajek",
    "fit_kirkpatrick",
    "fit_linear",
    "fit_piecewise",
    "fit_power",
    "fit_power_offset",
    "original_temperature",
    "theory",
]


@dataclass(frozen=True)
class Temperature:
    """Attention temperature over depth, ``T(L)/T(0)``, and the cooling laws fitted to it.

    Attributes:
        rule: how it was computed, a formula.
        layers: of the values.
        values: one per layer.
        laws: ``kirkpatrick`` and ``hajek``.
    """

    rule: str
    layers: tuple[int, ...]
    values: tuple[float, ...]
    laws: dict[str, Cooling]

    def as_dict(self) -> dict[str, Any]:
        laws = {name: law.as_dict() for name, law in self.laws.items()}
        return {"rule": self.rule, "layers": list(self.layers), "values": list(self.values), "laws": laws}


@dataclass(frozen=True)
class Gammas:
    """Everything that is said about the gains of one checkpoint.

    Attributes:
        scales: the families.
        fits: family to its fits by form.
        best: family to the form with the least aicc; None where no form is defined.
        chance: family to what random walks say of it, see :func:`app.analysis.gamma_null.against_chance`.
        temperatures: ``identifiable`` (from everything that logits scale with) and ``original`` (from the gain alone),
            as far as the families allow.
        attention_norm: family of the norm before attention; None where there is none of a known name.
    """

    scales: Scales
    fits: dict[str, dict[str, GammaFit]]
    best: dict[str, str | None]
    chance: dict[str, Chance]
    temperatures: dict[str, Temperature]
    attention_norm: str | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values without NaN; ``scales`` alone is enough to analyse it again."""
        return {
            **self.scales.as_dict(),
            "fits": {f: {form: fit.as_dict() for form, fit in fits.items()} for f, fits in self.fits.items()},
            "best": self.best,
            "chance": {family: chance.as_dict() for family, chance in self.chance.items()},
            "temperatures": {name: t.as_dict() for name, t in self.temperatures.items()},
        }


def analyse(scales: Scales, with_chance: bool = True) -> Gammas:
    """Fits every form to every family, and the cooling laws to the temperature.

    Args:
        scales: the families.
        with_chance: whether the families are also held against random walks.
    """
    series = {family: scales.series(family) for family in scales.rms}
    fits = {family: fit_all(layers, values) for family, (layers, values) in series.items()}
    chance = against_chance(series) if with_chance else {}
    norm = next((family for family in ATTENTION_NORMS if family in scales.rms), None)
    temperatures = {}
    if (identifiable := _identifiable(scales, norm)) is not None:
        temperatures["identifiable"] = identifiable
    gain = norm or next((f for f, kind in scales.kinds.items() if kind == "norm" and f != QK_GAIN), None)
    if gain is not None:
        layers, values = scales.series(gain)
        temperature = original_temperature(values)
        if temperature is not None:
            temperatures["original"] = _cooled(f"T ~ 1/{gain}", layers, temperature)
    best = {family: best_form(own) for family, own in fits.items()}
    return Gammas(scales, fits, best, chance, temperatures, norm)


def _identifiable(scales: Scales, norm: str | None) -> Temperature | None:
    """The temperature from everything that a head's logits scale with; None where a family of it is missing.

    A norm on queries and keys removes any common factor, so that then their own gains alone count.
    """
    if QK_GAIN in scales.rms:
        layers, gains = scales.series(QK_GAIN)
        temperature = original_temperature(gains)
        return None if temperature is None else _cooled("T ~ 1/rms(g_q * g_k)", layers, temperature)
    if (
        norm is None
        or not {"q_proj", "k_proj"} <= scales.rms.keys()
        or {"q_norm", "k_norm"} & scales.rms.keys()
    ):
        return None
    rows = [scales.rms[name] for name in (norm, "q_proj", "k_proj")]
    common = [layer for layer, values in enumerate(zip(*rows, strict=True)) if None not in values]
    gamma, query, key = (np.array([row[layer] for layer in common], dtype=np.float64) for row in rows)
    temperature = logit_temperature(gamma, query, key)
    return None if temperature is None else _cooled(f"T ~ 1/({norm}^2 |W_q| |W_k|)", common, temperature)


def _cooled(rule: str, layers: list[int], temperature: np.ndarray) -> Temperature:
    laws = {law.law: law for law in (fit_kirkpatrick(layers, temperature), fit_hajek(layers, temperature))}
    return Temperature(rule, tuple(layers), tuple(temperature.tolist()), laws)


def theory(n_layers: int) -> dict[str, float]:
    """What schemes that stabilise depth keep the same in every layer of a decoder with so many.

    - ``deepnorm_alpha = (2M)^¼`` and ``deepnorm_beta = (8M)^−¼`` (Wang et al. 2022, arXiv 2203.00555, table 1)
    - ``depth_mup_branch = 1/√L``, the factor on every residual branch (Yang et al. 2023, arXiv 2310.02244)
    """
    return {
        "deepnorm_alpha": (2 * n_layers) ** 0.25,
        "deepnorm_beta": (8 * n_layers) ** -0.25,
        "depth_mup_branch": n_layers**-0.5,
    }
