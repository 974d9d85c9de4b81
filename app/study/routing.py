"""Whether choices are specialised, by exchanging them; and whether they are useful, by networks trained without them.

That a choice is better than its alternatives *in the network that was trained with it* says that banks differ and that
the router knows which is which: *specialised*. It does not say that the network would be worse without a router. That
takes controls, trained with choices that nothing decides: *useful*, *equivalent*, *harmful* or *undecided*.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from app.analysis.crystallize_statistics import bootstrap_means, interval
from app.study.statistics import holm, spreads
from app.study.verdicts import ALPHA, Pair, Verdict, compare

Specialised = Literal["specialised", "not", "undecided"]
#: of the bootstrap; the least p-value is 1 over it, which Holm's correction multiplies by the number of routers
N_DRAWS = 20_000
USEFUL: Mapping[Verdict, str] = {
    "better": "useful",
    "worse": "harmful",
    "equivalent": "equivalent",
    "undecided": "undecided",
}


class Worth(NamedTuple):
    """What a router's choice is worth in its own network.

    Attributes:
        effect: nats per exchanged token by which the others are worse.
        interval: of it, 95 %, by a bootstrap over windows.
        p: of the claim, adjusted for the number of routers.
        verdict: *specialised*: worth the margin at least, *not*: worth less.
    """

    effect: float
    interval: list[float]
    p: float
    verdict: Specialised


class Trained(NamedTuple):
    """The final validation losses of a run with its router, and of its controls.

    Attributes:
        own: one a seed.
        controls: by who decides in them, one a seed.
        notes: what a reader should know of the runs.
    """

    own: list[float]
    controls: dict[str, list[float]]
    notes: list[str]


def specialised(effects: Sequence[Sequence[float]], margin: float, seed: int) -> list[Worth]:
    """Judges routers; all claims together err in at most 5 %.

    Args:
        effects: of each router, ``(n,)`` by window, see :func:`app.analysis.routing.exchange.exchange`; the windows are
            the same for all.
        margin: nats per token, positive; a choice that is worth less is worth nothing.
        seed: of the bootstrap.
    """
    rows = np.array(effects, dtype=np.float64).reshape(len(effects), -1)
    rows = rows[:, np.isfinite(rows).all(0)]
    draws = bootstrap_means(rows, seed, N_DRAWS)
    claims: list[Specialised] = []
    p_values = []
    for row in draws.T:
        is_worth = min(1.0, 2 * (1 + int((row <= margin).sum())) / (N_DRAWS + 1))
        is_not = (1 + int((row >= margin).sum())) / (N_DRAWS + 1)
        claims.append("specialised" if is_worth <= is_not else "not")
        p_values.append(min(is_worth, is_not))
    return [
        Worth(float(row.mean()), interval(own), p, claim if p <= ALPHA else "undecided")
        for row, own, p, claim in zip(rows, draws.T, holm(p_values), claims, strict=True)
    ]


def of_network(found: Sequence[Worth]) -> Specialised:
    """Of the whole network: *specialised* where one router is, *not* where all are not."""
    verdicts = {worth.verdict for worth in found}
    if "specialised" in verdicts:
        return "specialised"
    return "undecided" if "undecided" in verdicts or not verdicts else "not"


def against_controls(
    own: Sequence[float], controls: Mapping[str, Sequence[float]], margin: float
) -> list[dict[str, Any]]:
    """Whether a choice is worth training a router for.

    Args:
        own: losses of the network with the router, one a seed.
        controls: by name, those of networks with choices that nothing decides.
        margin: positive.

    Returns:
        Of each control ``control``, ``n``, ``mean`` and what :func:`app.study.verdicts.compare` says of the router
        against it, the verdict in the words of :data:`USEFUL`.

    Raises:
        ValueError: no two seeds of anything.
    """
    spread, *of_controls = spreads([own, *controls.values()])
    pairs = [
        Pair(float(np.mean(own)), len(own), float(np.mean(figures)), len(figures), spread, its)
        for figures, its in zip(controls.values(), of_controls, strict=True)
    ]
    return [
        {
            "control": name,
            "n": pair.other_n,
            "mean": pair.other_mean,
            **found._asdict(),
            "interval": list(found.interval),
            "verdict": USEFUL[found.verdict],
        }
        for name, pair, found in zip(controls, pairs, compare(pairs, margin), strict=True)
    ]
