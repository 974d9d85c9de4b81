"""Verdicts about routers: on planted networks, on numbers, and against controls."""

import numpy as np
import pytest

from app.analysis.routing.exchange import exchange, places
from app.analysis.routing.routers import routers
from app.study.routing import Worth, against_controls, of_network, specialised
from tests.support.planted_routing import Planted, planted, worth

MARGIN, N_WINDOWS, N_TOKENS = 0.01, 40, 12


def judged(made: Planted, seed: int) -> dict[str, Worth]:
    """The verdict on every router of a network."""
    of = routers(made.network)
    windows = made.windows(N_WINDOWS, seed)
    at = places(windows, N_TOKENS, seed)
    effects = [exchange(made.network, router, windows, at, 256) for router in of]
    return dict(zip([router.name for router in of], specialised(effects, MARGIN, seed), strict=True))


def is_wrong(made: Planted, found: dict[str, Worth]) -> bool:
    """Whether anything that was said is false: of the network or of one of its routers."""
    truth = {name: "specialised" if name == made.decides else "not" for name in found}
    return any(worth.verdict not in ("undecided", truth[name]) for name, worth in found.items())


@pytest.mark.parametrize("decides", [True, False])
def test_a_planted_network_is_judged(decides: bool) -> None:
    made = planted(1, decides, MARGIN)
    found = judged(made, 1)
    assert not is_wrong(made, found)
    assert of_network(list(found.values())) == ("specialised" if decides else "not")


@pytest.mark.stress
@pytest.mark.timeout(3600)
def test_forty_planted_networks() -> None:
    wrong, decided = [], 0
    for decides in (True, False):
        for number in range(20):
            made = planted(number, decides, MARGIN)
            found = judged(made, 100 + number)
            said = of_network(list(found.values()))
            decided += said != "undecided"
            wrong += [(number, decides)] if is_wrong(made, found) else []
            best = max(found.values(), key=lambda worth: worth.effect)
            print(number, decides, said, f"{best.effect:+.4f}", flush=True)
    assert wrong == []
    assert decided >= 36


@pytest.mark.stress
@pytest.mark.timeout(3600)
def test_what_is_planted_is_what_is_there() -> None:
    for number in range(20):
        made = planted(number, True, MARGIN)
        for router in routers(made.network):
            cost = worth(made, router)
            assert cost > 2 * MARGIN if router.name == made.decides else abs(cost) < MARGIN
        made = planted(number, False, MARGIN)
        assert all(abs(worth(made, router)) < MARGIN for router in routers(made.network))


def test_a_claim_needs_its_windows() -> None:
    draw = np.random.default_rng(0)
    noise = draw.standard_normal(40)
    noise -= noise.mean()
    far, near, none = (
        (0.05 + 0.01 * noise).tolist(),
        (MARGIN + 0.01 * noise).tolist(),
        (0.001 * noise).tolist(),
    )
    found = specialised([far, near, none], MARGIN, 0)
    assert [worth.verdict for worth in found] == ["specialised", "undecided", "not"]
    assert found[0].effect == pytest.approx(0.05)
    assert found[0].interval[0] < 0.05 < found[0].interval[1]
    assert of_network(found) == "specialised"
    assert of_network(found[1:]) == "undecided"
    assert of_network(found[2:]) == "not"
    # Much worse than the others is no specialisation either.
    (worse,) = specialised([(-0.5 + noise * 0.01).tolist()], MARGIN, 0)
    assert worse.verdict == "not"


def test_many_routers_ask_for_more() -> None:
    draw = np.random.default_rng(1)
    noise = draw.standard_normal(40)
    barely = (MARGIN + 0.01 * (noise - noise.mean()) / noise.std() + 0.0039).tolist()
    (alone,) = specialised([barely], MARGIN, 0)
    among = specialised(
        [barely, *[[0.01 + 0.05 * x for x in draw.standard_normal(40)] for _ in range(20)]], MARGIN, 0
    )
    assert (alone.verdict, among[0].verdict) == ("specialised", "undecided")


def test_useful_is_said_against_controls_alone() -> None:
    own = [1.50, 1.51, 1.49, 1.50]
    shifted = {"hash": 0.1, "random": 0.0, "position": -0.1, "forward": 0.02}
    controls = {name: [loss + by for loss in own] for name, by in shifted.items()}
    found = against_controls(own, controls, 0.02)
    assert [control["verdict"] for control in found] == ["useful", "equivalent", "harmful", "undecided"]
    assert found[0]["difference"] == pytest.approx(-0.1)
    with pytest.raises(ValueError, match="two seeds"):
        against_controls([1.5], {"hash": [1.6]}, 0.02)
