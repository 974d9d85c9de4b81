"""Exchanges against one forward pass each, and what choices go with on numbers whose answer is known."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from app.analysis.routing import associations
from app.analysis.routing.exchange import exchange, n_batches, places, retention
from app.analysis.routing.routers import Router, Windows, choices, routers, row_cosine
from app.models import LanguageModel
from app.models.equilibrium import EquilibriumLM
from app.models.gpt import GPT
from app.models.tilelli import TilelliLM

V, T = 11, 9


def windows(n: int = 3) -> Windows:
    text = torch.randint(V, (n, T + 1), generator=torch.Generator().manual_seed(1))
    targets = text[:, 1:].clone()
    targets[1, 3:] = -100  # a task's window with fewer questions
    return Windows(text[:, :-1].contiguous(), targets, {})


def tilelli(**options: object) -> TilelliLM:
    torch.manual_seed(0)
    network = TilelliLM(V, d_model=8, n_layers=2, n_banks=3, pathways=3, d_head=4, **options).eval()
    for block in network.tilelli_blocks:
        block.router.weight.data.mul_(8)
    return network


def equilibrium() -> EquilibriumLM:
    torch.manual_seed(0)
    network = EquilibriumLM(
        vocab_size=V, block_size=T, d_model=8, n_layers=2, n_heads=2, d_ff=8, capacity_factor=None
    )
    for parameter in network.parameters():
        parameter.data.mul_(8)
    network.train()
    for _ in range(3):  # thresholds of its own, in place of each batch's
        network(torch.randint(V, (8, T)))
    return network.eval()


def one_by_one(network: LanguageModel, router: Router, text: Windows, at: list[torch.Tensor]) -> list[float]:
    """The definition, a forward pass an exchange."""
    found = []
    for row in range(len(text.idx)):
        idx, targets, costs = text.idx[row : row + 1], text.targets[row : row + 1], []
        own = network(
            idx, capture=[router.chosen] + ([f"{router.prefix}weights"] if router.what == "bank" else [])
        )
        for place in at[row].tolist():
            for other in range(router.n_choices):
                chosen = own.captured[router.chosen].clone()
                at_place = (0, place) if router.part is None else (0, place, router.part)
                if int(chosen[at_place]) == other:
                    continue
                chosen[at_place] = other
                held = {name: (lambda x, value=own.captured[name]: value) for name in own.captured}
                held[router.chosen] = lambda x, value=chosen: value
                logits = network(idx, intervene=held).logits
                nats = [
                    F.cross_entropy(each[0, place:], targets[0, place:], reduction="sum")
                    for each in (logits, own.logits)
                ]
                costs.append(float(nats[0] - nats[1]))
        found.append(sum(costs) / len(costs))
    return found


@pytest.mark.parametrize("of", ["sum", "bank", "routes"])
@torch.no_grad()
def test_an_exchange_is_what_it_is_one_by_one(of: str) -> None:
    network: LanguageModel = equilibrium() if of == "routes" else tilelli(bank_gate=of)
    text = windows()
    at = places(text, 4, 0)
    assert [int(place.max()) < n for place, n in zip(at, (T, 3, T), strict=True)] == [True] * 3
    found = routers(network)
    assert len(found) == (2 if of == "routes" else 6)
    ticks: list[int] = []
    for router in found[-3:]:
        ticks.clear()
        costs = exchange(network, router, text, at, 7, lambda: ticks.append(1))
        assert len(ticks) == n_batches(router, at, 7)
        np.testing.assert_allclose(costs, one_by_one(network, router, text, at), atol=2e-5)
        assert max(map(abs, costs)) > 1e-3


def test_what_has_no_choice_has_no_router() -> None:
    assert routers(GPT(V, block_size=T, d_model=8, n_layers=1, n_heads=2)) == []
    torch.manual_seed(0)
    assert routers(TilelliLM(V, d_model=8, n_layers=1, pathways=3)) == []


def test_what_is_kept_of_the_banks() -> None:
    network, text = tilelli(), windows()
    of = routers(network)
    own = choices(network, of, text, 2)
    for router in of:
        assert own.chosen[router.name].shape == (3, T)
    everything = retention(network, of, own.chosen, text, 2, 3)
    np.testing.assert_allclose(everything, own.losses, atol=1e-6)
    one = retention(network, of, own.chosen, text, 2, 1)
    with torch.no_grad():
        kept = {
            name: torch.stack(
                [
                    torch.bincount(own.chosen[r.name].flatten(), minlength=3).argmax()
                    for r in of
                    if r.chosen == name
                ]
            )
            for name in {router.chosen for router in of}
        }
        fixed = {name: (lambda x, bank=bank: bank.expand_as(x)) for name, bank in kept.items()}
        logits = network(text.idx[:1], intervene=fixed).logits
    assert one[0] == pytest.approx(float(F.cross_entropy(logits[0], text.targets[0])), abs=1e-5)


def test_rows_that_are_alike_have_a_cosine_of_one() -> None:
    network = tilelli(quantize=False)
    router = routers(network)[1]
    weight = network.tilelli_blocks[0].router.weight.data
    weight[3:6] = torch.tensor([[1.0], [2.0], [3.0]]) * weight[0]
    assert row_cosine(network, router) == pytest.approx(1.0)
    weight[3:6] = torch.eye(3, 8)
    assert row_cosine(network, router) == 0.0
    assert row_cosine(equilibrium(), Router(0, "route", "", "blocks.0.router.", None, 4)) is None


def test_information_is_that_of_the_table() -> None:
    draw = np.random.default_rng(0)
    a = draw.integers(0, 4, 20_000)
    assert associations.entropy(a) == pytest.approx(math.log(4), abs=1e-3)
    assert associations.mutual_information(a, a) == pytest.approx(associations.entropy(a))
    assert associations.mutual_information(a, a // 2) == pytest.approx(math.log(2), abs=1e-3)
    told = associations.explained(a // 2, a, 0)
    assert told is not None
    assert (told["share"], told["by_chance"]) == (pytest.approx(1), pytest.approx(0, abs=1e-3))
    assert associations.explained(np.zeros(9, dtype=np.int64), np.arange(9), 0) is None
    b = draw.integers(0, 2, 20_000)
    matrix = associations.coactivation({"a": a, "b": b, "c": np.zeros_like(a)})
    assert matrix[0][0] == pytest.approx(1)
    assert matrix[0][1] == pytest.approx(0, abs=1e-3)
    assert matrix[2] == [None, None, None]
    (lift,) = associations.lifts({"a": a // 2, "b": a // 2}, {"a": 2, "b": 3})
    assert lift["lift"][0] == [pytest.approx(2, abs=0.05), 0.0, None]
    assert associations.agreement(a, (a + 1) % 4) == {
        "share": 0.0,
        "by_chance": pytest.approx(0.25, abs=1e-3),
    }
