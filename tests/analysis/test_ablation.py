"""What is planted as useless costs nothing; what is not, is told."""

import io

import numpy as np
import pytest
import torch
from torch import Tensor

from app.analysis import ablation
from app.analysis.ablation_figure import draw, signed, table_rows
from app.analysis.report.ablations import ablations
from app.models import LanguageModel
from app.models.activations import is_watched
from tests.models.test_wrapped_blocks import N_LAYERS, NETWORKS, network, tilelli, tokens

BLOCKS = tokens(6, 14)
ABOUT = {"model": "net", "text": "text", "n_blocks": 6, "seq_len": 14}


def everything(model: LanguageModel) -> dict[str, dict[str, object]]:
    means = ablation.means_of(model, ablation.averaged(model), BLOCKS, 4)
    planned = ablation.plan(model, means, seed=1)
    assert len({each.name for each in planned}) == len(planned)
    own = ablation.measure(model, None, BLOCKS, 4)
    losses = {each.name: ablation.measure(model, each, BLOCKS, 4) for each in planned}
    assert np.array_equal(ablation.measure(model, None, BLOCKS, 4), own)  # all is as it was
    assert not is_watched()
    summary = ablation.summarise(own, losses, planned, 3, ABOUT)
    return {str(entry["name"]): entry for entry in summary["ablations"]}


def test_a_planted_copy_of_a_bank_and_a_dead_pathway_cost_nothing() -> None:
    torch.manual_seed(3)
    model = tilelli(n_banks=3, lsq=True).eval()
    first, second = model.blocks[0], model.blocks[1]
    with torch.no_grad():
        for each in model.parameters():
            each.add_(0.3 * torch.randn_like(each))
        for pathway in first.pathway_names:
            for parameter in getattr(first, pathway).parameters():
                parameter.copy_(parameter[:1].expand_as(parameter))
        for parameter in second.sparse.value.parameters():
            parameter.zero_()
    found = everything(model)
    for name, entry in found.items():
        is_planted = name.startswith(("blocks.0.router.bank", "blocks.1.paths.sparse"))
        if is_planted:
            low, high = entry["interval"]  # type: ignore[misc]
            assert low <= 0 <= high, name
            assert abs(float(entry["delta"])) < 1e-6, name  # type: ignore[arg-type]
    assert found["blocks.2.router.bank swapped"]["delta"] != 0
    assert found["blocks.1.paths.dense zero"]["delta"] != 0
    assert found["full precision"]["delta"] != 0


def test_a_planted_dead_route_costs_nothing() -> None:
    model = network("equilibrium")
    model.train()(BLOCKS)  # one batch ends the warm-up
    model.eval()
    with torch.no_grad():
        model.plastic.up.weight.zero_()
        model.plastic.up.bias.zero_()
    found = everything(model)
    for layer in range(N_LAYERS):
        assert found[f"blocks.{layer}.router.choice without plastic"]["interval"] == [0.0, 0.0]
    # The first block has no route but the plastic one.
    assert found["blocks.0.router.choice shuffle"]["delta"] == 0
    assert any(found[f"blocks.{layer}.router.choice shuffle"]["delta"] != 0 for layer in (1, 2))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_architecture_is_cut(name: str) -> None:
    kinds = {str(entry["kind"]) for entry in everything(network(name).eval()).values()}
    expected = {
        "gpt": "attention",
        "crystal": "head",
        "local": "head",
        "equili": "route",
        "tilell": "pathway",
    }
    assert {"block", next(kind for start, kind in expected.items() if name.startswith(start))} <= kinds
    assert ("precision" in kinds) == name.startswith("tilelli")


def test_interventions_do_what_they_say() -> None:
    model = network("tilelli, banks").eval()
    seen: dict[str, Tensor] = {}

    def bank_with(what: str) -> Tensor:
        key = "blocks.1.router.bank"
        planned = {each.name: each for each in ablation.plan(model, {}, seed=1)}
        return model(BLOCKS, capture=[key], intervene=planned[f"{key} {what}"].replace(BLOCKS)).captured[key]

    seen = {what: bank_with(what) for what in ("fixed 2", "swapped", "shuffle")}
    own = model(BLOCKS).routing[1].bank_index
    assert seen["fixed 2"].eq(2).all()
    assert torch.equal(seen["swapped"], (own + 1) % 3)
    assert not torch.equal(seen["shuffle"], own)
    assert torch.equal(seen["shuffle"].flatten(0, 1).sort(0).values, own.flatten(0, 1).sort(0).values)
    route = torch.randint(0, 4, BLOCKS.shape, generator=torch.Generator().manual_seed(1))
    hashed = ablation._hashed(BLOCKS)(route)
    assert torch.equal(hashed.flatten().sort().values, route.flatten().sort().values)
    n_split = sum(len(hashed[token == BLOCKS].unique()) > 1 for token in BLOCKS.unique())
    assert n_split <= 3  # where one route's share ends and the next begins
    gpt = network("gpt").eval()
    top = ablation._to_top_key(1)
    weights = gpt(
        BLOCKS, capture=["blocks.0.attn.weights"], intervene={"blocks.0.attn.weights": top}
    ).captured
    heads = weights["blocks.0.attn.weights"]
    assert ((heads[:, 1] > 0).sum(-1) == 1).all()
    assert ((heads[:, 0] > 0).sum(-1) > 1).any()
    skipped = next(each for each in ablation.plan(gpt, {}, 1) if each.name == "blocks.1.skipped")
    names = ["blocks.1.in", "blocks.1.out"]
    both = gpt(BLOCKS, capture=names, intervene=skipped.replace(BLOCKS)).captured
    assert torch.equal(both[names[0]], both[names[1]])


def test_intervals_are_paired() -> None:
    """Windows of very unequal losses, of which each loses the same: there is no doubt about the difference."""
    model = network("gpt").eval()
    planned = ablation.plan(model, {}, 1)[:2]
    own = [1.0, 9.0, 4.0, 2.0]
    losses = {planned[0].name: [x + 0.25 for x in own], planned[1].name: own[::-1]}
    same, other = sorted(
        ablation.summarise(own, losses, planned, 1, ABOUT)["ablations"], key=lambda e: -e["delta"]
    )
    assert np.allclose([same["delta"], *same["interval"]], 0.25)
    assert other["interval"][0] < -1 < 1 < other["interval"][1]


def test_a_mean_is_taken_over_tokens_and_refused_of_indices() -> None:
    model = network("gpt").eval()
    key = "blocks.0.attn.z"
    mean = ablation.means_of(model, [key], BLOCKS, 4)[key]
    whole = model(BLOCKS, capture=[key]).captured[key].double()
    torch.testing.assert_close(mean, whole.mean((0, 2), keepdim=True), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="holds indices"):
        ablation.means_of(network("tilelli").eval(), ["blocks.0.router.bank"], BLOCKS, 4)
    one = ablation.of_activation(model, key, "mean", {key: mean}, 1)
    assert np.isfinite(ablation.measure(model, one, BLOCKS)).all()


def test_table_and_picture_of_many_rows() -> None:
    entries = [
        {
            "name": str(n),
            "kind": "head",
            "layer": n,
            "label": f"head {n}",
            "delta": 1 / (n + 1),
            "interval": [0.0, 1.0],
        }
        for n in range(50)
    ]
    rows, n_left = table_rows(entries)
    assert (len(rows), n_left) == (8, 42)
    assert [signed(x) for x in (0.12345, -0.00001, -0.2)] == ["+0.1235", "0.0000", "-0.2000"]
    written = io.BytesIO()
    draw({**ABOUT, "ablations": entries, "baseline": {"loss": 2.0}}, written)
    assert written.getvalue().startswith(b"\x89PNG")
    assert ablations([]) == []
