"""Banks and routes that no router chooses: their shares, that they are fixed, and that a network uses them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from app.models.equilibrium import EquilibriumLM
from app.models.fixed_choice import banks, places
from app.models.generation import generate
from app.models.tilelli import TilelliLM

IDX = torch.randint(0, 23, (2, 40), generator=torch.Generator().manual_seed(0))
CHOICES = ("hash", "random", "position")


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("n_banks", [2, 3, 4, 8])
def test_banks_have_equal_shares(choice: str, n_banks: int) -> None:
    every = torch.arange(20_000)[None] % 1000
    found = banks(choice, every, 0, 1, 1000, n_banks)
    shares = torch.bincount(found.flatten(), minlength=n_banks) / found.numel()
    assert shares.min() >= 0
    torch.testing.assert_close(shares, torch.full_like(shares, 1 / n_banks), atol=0.012, rtol=0)


@pytest.mark.parametrize("choice", CHOICES)
def test_routes_have_the_target_shares(choice: str) -> None:
    every = torch.arange(40_000)[None] % 2000
    ends = torch.tensor([0.55, 0.80, 0.95])
    route = torch.bucketize(places(choice, every, 0, 2, 2000), ends, right=True)
    shares = torch.bincount(route.flatten(), minlength=4) / route.numel()
    torch.testing.assert_close(shares, torch.tensor([0.55, 0.25, 0.15, 0.05]), atol=0.01, rtol=0)


def test_what_each_choice_depends_on() -> None:
    other = (IDX + 1) % 23
    for choice, by_token in (("hash", True), ("random", False), ("position", False)):
        here = places(choice, IDX, 0, 0, 23)
        assert torch.equal(here, places(choice, IDX, 0, 0, 23))
        assert torch.equal(here, places(choice, other, 0, 0, 23)) != by_token
        assert torch.equal(here[:, 5:], places(choice, IDX[:, 5:], 5, 0, 23))
        assert torch.equal(here, places(choice, IDX, 0, 1, 23)) == (choice == "position")
        assert (here >= 0).all() and (here < 1).all()
    for n in (1, 2, 3, 96, 8192):
        assert len(places("hash", torch.arange(n)[None], 0, 0, n).unique()) == n


def tilelli(**options: Any) -> TilelliLM:
    torch.manual_seed(0)
    return TilelliLM(23, 12, 2, n_banks=3, d_head=4, **options)


@pytest.mark.parametrize("gate", ["sum", "bank"])
@pytest.mark.parametrize("choice", CHOICES)
def test_tilelli_uses_the_banks(choice: str, gate: Any) -> None:
    network = tilelli(bank_choice=choice, bank_gate=gate)
    output = network(IDX, IDX)
    for layer, routing in enumerate(output.routing):
        expected = banks(choice, IDX, 0, layer, 23, 3)
        assert torch.equal(routing.bank_index, expected[..., None].expand(-1, -1, 5))
        if gate == "sum":
            torch.testing.assert_close(routing.pathway_weights.sum(-1), torch.ones(IDX.shape))
    assert not torch.allclose(output.logits, tilelli(bank_gate=gate)(IDX).logits)
    assert network.state_dict().keys() == tilelli().state_dict().keys()
    output.loss.backward()
    assert network.blocks[0].router.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("rows", [1, 2])
def test_tilelli_steps_as_it_reads(choice: str, rows: int) -> None:
    network = tilelli(bank_choice=choice).eval()
    idx = IDX[:rows]
    whole = network(idx).logits
    logits, cache = network.prefill(idx[:, :7])
    torch.testing.assert_close(logits, whole[:, 6])
    for place in range(7, 20):
        torch.testing.assert_close(network.step(idx[:, place], cache), whole[:, place])
    torch.testing.assert_close(network.infer(idx), whole)
    assert len(list(generate(network, idx, 3, temperature=0.0))) == 3


def equilibrium(**options: Any) -> EquilibriumLM:
    torch.manual_seed(0)
    return EquilibriumLM(23, 64, 8, 2, 2, 8, dropout=0.0, warmup_steps=0, statistics="lagged", **options)


@pytest.mark.parametrize("choice", [*CHOICES, "forward"])
def test_equilibrium_takes_the_routes(choice: Any) -> None:
    network = equilibrium(route_choice=choice)
    output = network(IDX, IDX)
    routes: list[Tensor] = [record.route for record in output.routing]
    if choice == "forward":
        assert all((route == 0).all() for route in routes)
    else:
        place = places(choice, IDX, 0, 1, 23)
        expected = torch.bucketize(place, torch.tensor([0.55, 0.80, 0.95]), right=True)
        assert torch.equal(routes[1], expected)
        assert len(expected.unique()) > 2
    assert output.loss.isfinite()
    assert network.state_dict().keys() == equilibrium().state_dict().keys()


def test_while_warming_up_all_go_forward() -> None:
    network = equilibrium(route_choice="hash")
    for signal in network.equilibrium_signals:
        signal.warmup_steps = 10
    assert all((record.route == 0).all() for record in network(IDX).routing)
