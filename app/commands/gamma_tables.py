"""Gains over depth as text of at most 80 columns, where names leave room for it."""

import math
from collections.abc import Sequence

from rich.text import Text

from app.analysis.gamma import Gammas, theory
from app.analysis.gamma_fits import FORMS, GammaFit, points_needed
from app.analysis.gamma_null import N_WALKS, written
from app.commands.tables import console, print_table
from app.run.terminal import say

#: heading and columns of what is said of a form
COLUMNS = (("r2", 7), ("r2 ln", 7), ("AICc", 9), ("walks", 13), ("chance", 9))
FORM = 13
LEGEND = (
    "* best by AICc, which is of ln y; L counts layers from 0",
    "linear a + bL; power a (L+1)^b; exponential a e^(bL); power_offset a + b (L+1)^c; piecewise a1 e^(b1 (L+1)) "
    "where L+1 < split, a2 e^(b2 (L+1)) from there on",
    f"walks: r2 that the form reaches on {N_WALKS:,} random walks in ln y, median / 95th percentile",
    "chance: share of the walks that this form alone fits at least as well, in ln y",
)


def print_gains(gammas: Gammas, title: str) -> None:
    """Prints every family with its fits, what chance makes of them, the temperatures, and what theory has.

    Args:
        gammas: what was found.
        title: whose gains they are.
    """
    scales = gammas.scales
    n_layers = max(len(row) for row in scales.rms.values())
    one_plus = ", gains are 1 + w" * scales.one_plus
    say("gains", f"{title}: {len(scales.rms)} families over {n_layers} layers{one_plus}")
    impossible = _impossible(gammas)
    if impossible:
        needed = ", ".join(f"{form} {points_needed(form)}" for form in impossible)
        say("no fit", f"{n_layers} layers are too few, at least it takes for {needed}")
    print()
    _print_families(gammas, impossible)
    if any(gammas.best.values()):
        print()
        for number, line in enumerate(LEGEND):
            say("" if number else "legend", line)
        print()
    _print_chance(gammas)
    _print_temperature(gammas)
    constant = theory(n_layers)
    say(
        "theory",
        f"constant in depth for M = {n_layers} layers: DeepNorm alpha (2M)^1/4 = {constant['deepnorm_alpha']:.4f}, "
        f"beta (8M)^-1/4 = {constant['deepnorm_beta']:.4f}; depth-muP branches 1/sqrt(L) = "
        f"{constant['depth_mup_branch']:.4f}",
    )


def _impossible(gammas: Gammas) -> list[str]:
    """The forms for which no family has layers enough."""
    most = max(len(gammas.scales.series(family)[0]) for family in gammas.fits)
    return [form for form in FORMS if points_needed(form) > most]


def _print_families(gammas: Gammas, impossible: Sequence[str]) -> None:
    """A line per family, and one per form that was fitted; its parameters beside it, or below where it is narrow.

    Args:
        gammas: what was found.
        impossible: forms that are not named again.
    """
    terminal = console()
    possible = {
        family: {form: fit for form, fit in fits.items() if form not in impossible}
        for family, fits in gammas.fits.items()
    }
    fitted = {f: fits for f, fits in possible.items() if not all(fit.undefined for fit in fits.values())}
    rows = [
        [family, *_ends(gammas, family), *(fit.undefined for fit in list(fits.values())[:1])]
        for family, fits in possible.items()
        if family not in fitted
    ]
    if rows:
        header = ["family", "first", "last", "last/first", "undefined"][: len(rows[0])]
        print_table(terminal, header, rows, left=(0, 4))
    if not fitted:
        return
    heading = f"  {'form':<{FORM}}" + "".join(f"{name:>{width}}" for name, width in COLUMNS)
    room = terminal.width - len(heading) - 2
    parameters = {
        (family, form): _parameters(fit)
        for family, fits in fitted.items()
        for form, fit in fits.items()
        if not fit.undefined
    }
    is_beside = max(map(len, parameters.values())) <= room
    terminal.print(Text(heading + "  parameters" * is_beside, style="bold"), soft_wrap=True)
    for family, fits in fitted.items():
        first, last, ratio = _ends(gammas, family)
        terminal.print(
            Text.assemble((family, "bold"), f": {first} in the first layer, {last} in the last, x {ratio}"),
            soft_wrap=True,
        )
        for form, fit in fits.items():
            is_best = gammas.best[family] == form
            line = f"{'*' if is_best else ' '} {form:<{FORM}}"
            if fit.undefined:
                terminal.print(Text(f"{line} undefined: {fit.undefined}"), soft_wrap=True)
                continue
            cells = (f"{fit.r2:.4f}", _number(fit.r2_log, ".4f"), _number(fit.aicc, ".1f"))
            line += "".join(
                f"{cell:>{width}}"
                for cell, (_, width) in zip(
                    (*cells, *_against_walks(gammas, family, form)), COLUMNS, strict=True
                )
            )
            own = parameters[family, form]
            line += f"  {own}" if is_beside else f"\n    {own}"
            terminal.print(Text(line, style="bold" if is_best else ""), soft_wrap=True)


def _ends(gammas: Gammas, family: str) -> list[str]:
    """The first and the last value, and how they relate."""
    _, values = gammas.scales.series(family)
    ratio = f"{values[-1] / values[0]:.3f}" if values[0] else "-"
    return [f"{values[0]:.4g}", f"{values[-1]:.4g}", ratio]


def _parameters(fit: GammaFit) -> str:
    text = ", ".join(f"{name} {value:.4g}" for name, value in fit.parameters.items())
    return text + (f" ({fit.masked} not positive, left out)" if fit.masked else "")


def _against_walks(gammas: Gammas, family: str, form: str) -> tuple[str, str]:
    """The cells of the columns ``walks`` and ``chance``."""
    chance = gammas.chance.get(family)
    if chance is None or form not in chance.forms:
        return "-", "-"
    scores = chance.forms[form]
    return f"{scores['median']:.2f} / {scores['q95']:.2f}", written(scores["p"])


def _print_chance(gammas: Gammas) -> None:
    """Which families run over depth as chance would hardly make them, corrected for all that was looked at."""
    if not gammas.chance:
        return
    say(
        "chance",
        f"of the best form by itself (least p over the forms, {N_WALKS:,} walks) -> of it among {len(gammas.chance)} "
        "families (Holm)",
    )
    width = max(map(len, gammas.chance))
    for family, chance in sorted(gammas.chance.items(), key=lambda item: item[1].p):
        error = f" +- {chance.error:.4f}" if chance.error >= 5e-5 else ""
        say("", f"{family:<{width}}  {written(chance.p, 4)}{error} -> {written(chance.p_family, 4)}")
    print()


def _print_temperature(gammas: Gammas) -> None:
    family = gammas.attention_norm or next((f for f, k in gammas.scales.kinds.items() if k == "norm"), None)
    if family is None or not gammas.temperatures:
        return
    layers, values = gammas.scales.series(family)
    rows = []
    by_layer = [dict(zip(t.layers, t.values, strict=True)) for t in gammas.temperatures.values()]
    for layer, value in zip(layers, values, strict=True):
        ratio = f"{value / values[0]:.4f}" if values[0] else "-"
        logarithm = _number(math.log(value), ".4f") if value > 0 else "-"
        temperatures = [f"{own[layer]:.4f}" if layer in own else "-" for own in by_layer]
        rows.append([str(layer), f"{value:.4f}", ratio, logarithm, *temperatures])
    say("gain", f"of {family}")
    heading = ["layer", "gain", "gain/first", "ln gain", *(f"T {name}" for name in gammas.temperatures)]
    print_table(console(), heading, rows)
    for name, temperature in gammas.temperatures.items():
        if len(temperature.layers) < points_needed("exponential"):
            continue  # a cooling law is fitted to as many points
        say("cooling", f"{name}, {temperature.rule}")
        for law in temperature.laws.values():
            text = law.undefined or ", ".join(f"{key} {value:.4g}" for key, value in law.parameters.items())
            r2 = "" if law.undefined else f", r2 {_number(law.r2, '.4f')}"
            say("", f"{law.law:<12} {text}{r2}" + (f"; {law.note}" if law.note else ""))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form).replace("-0.0000", "0.0000")
