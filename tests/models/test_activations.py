"""Activations are read and replaced by name; a pass that nobody looks into is what it was."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from app.models import LanguageModel, activations
from app.ops.choice import use_form
from tests.models.test_wrapped_blocks import N_LAYERS, NETWORKS, network, tokens

IDX = tokens(2, 13)


def evaluated(name: str) -> LanguageModel:
    return network(name).eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_an_identity_changes_no_bit_whatever_is_asked(name: str) -> None:
    model = evaluated(name)
    names = list(model.activations())
    plain = model(IDX, IDX)
    identities: list[Callable[[Tensor], Tensor]] = [lambda x: x, torch.clone]
    for form in ("vectorized", "naive"):
        with use_form(form):
            plain = model(IDX, IDX)
            for identity in identities:
                asked = model(IDX, IDX, capture=names, intervene=dict.fromkeys(names, identity))
                assert torch.equal(asked.logits, plain.logits)
                assert torch.equal(asked.loss, plain.loss)
                assert torch.equal(asked.aux_loss, plain.aux_loss)
                assert list(asked.captured) == names
    assert plain.captured is None


@pytest.mark.parametrize("name", NETWORKS)
def test_names_and_shapes_are_as_listed(name: str) -> None:
    model = network(name).train()
    modes = [module.training for module in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    listed = model.activations()
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    captured = model.eval()(IDX, capture=list(listed)).captured
    sizes = {"B": IDX.shape[0], "T": IDX.shape[1]}
    for key, x in captured.items():
        shape = listed[key]
        if "?" not in shape:
            assert tuple(x.shape) == tuple(sizes.get(size, size) for size in shape), key
    for layer in range(N_LAYERS):
        for own in ("in", "out"):
            assert listed[f"blocks.{layer}.{own}"] == ("B", "T", 12)
    assert {"embed", "final", "logits"} <= set(listed)


@pytest.mark.parametrize("name", NETWORKS)
def test_training_is_the_same_with_and_without_a_look(name: str) -> None:
    """Loss, gradients, running state and the random numbers that follow, in training with dropout."""
    results = []
    for looks in (False, True):
        model = network(name).train()
        names = [key for key in model.activations() if not key.endswith("attn.weights")]
        torch.manual_seed(5)
        output = model(
            IDX, IDX, **({"capture": names, "intervene": {names[2]: lambda x: x}} if looks else {})
        )
        (output.loss + output.aux_loss).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        results.append((output.loss.detach(), *gradients, *model.running_state(), torch.rand(3)))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_replaced_reaches_the_logits(name: str) -> None:
    model = evaluated(name)
    plain = model(IDX).logits
    floats = [
        key
        for key, x in model(IDX, capture=list(model.activations())).captured.items()
        if x.is_floating_point()
    ]
    without = {key: model(IDX, intervene={key: torch.zeros_like}).logits for key in floats}
    same = {key for key in floats if torch.equal(without[key], plain)}
    # What only a choice is made by, and routes that no token of this text takes, need not be heard.
    assert {
        key for key in same if not any(part in key for part in (".router.", ".paths.", "branches."))
    } == set()
    # A captured value is what went on, whoever made it.
    key = "blocks.1.out"
    cut = model(IDX, capture=[key], intervene={key: torch.zeros_like})
    assert not cut.captured[key].any()


@pytest.mark.parametrize("name", ["gpt", "equilibrium"])
def test_gradients_go_through_attention_weights(name: str) -> None:
    model = evaluated(name)
    key = "blocks.1.attn.weights"
    plain = torch.autograd.grad(model(IDX, IDX).loss, list(model.parameters()), allow_unused=True)
    looked = model(IDX, IDX, capture=[key])
    of_weights, *own = torch.autograd.grad(
        looked.loss, [looked.captured[key], *model.parameters()], allow_unused=True
    )
    assert of_weights.abs().sum() > 0
    for one, other in zip(own, plain, strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    weights = looked.captured[key]
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))

    def moved(x: Tensor) -> Tensor:
        return x + 1e-3 * direction

    direction = torch.randn_like(weights).tril()
    shifted = model(IDX, IDX, intervene={key: moved}).loss
    torch.testing.assert_close(
        (shifted - looked.loss) / 1e-3, (of_weights * direction).sum(), rtol=0.05, atol=1e-4
    )


def test_banks_and_routes_of_a_token_can_be_exchanged() -> None:
    tilelli = evaluated("tilelli, banks")
    key = "blocks.1.router.bank"

    def exchanged(bank: Tensor) -> Tensor:
        return (bank + 1) % 3

    plain = tilelli(IDX)
    other = tilelli(IDX, intervene={key: exchanged})
    assert torch.equal(other.routing[1].bank_index, exchanged(plain.routing[1].bank_index))
    assert torch.equal(other.routing[0].bank_index, plain.routing[0].bank_index)
    assert not torch.equal(other.logits, plain.logits)
    with pytest.raises(ValueError, match=r"blocks\.1\.router\.bank became 3 … 3; must lie in 0 … 2"):
        tilelli(IDX, intervene={key: lambda bank: torch.full_like(bank, 3)})
    equilibrium = evaluated("equilibrium")
    equilibrium.train()(IDX)  # one batch ends the warm-up
    equilibrium.eval()
    all_back = equilibrium(IDX, intervene={"blocks.1.router.choice": lambda route: torch.full_like(route, 2)})
    assert all_back.routing[1].route.eq(2).all()


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("hook_embed", "embed"),
        ("hook_pos_embed", "pos_embed"),
        ("blocks.1.hook_resid_pre", "blocks.1.in"),
        ("blocks.1.attn.hook_q", "blocks.1.attn.q"),
        ("blocks.1.attn.hook_pattern", "blocks.1.attn.weights"),
        ("blocks.1.attn.hook_z", "blocks.1.attn.z"),
        ("blocks.1.hook_attn_out", "blocks.1.attn.out"),
        ("blocks.1.hook_resid_mid", "blocks.1.mid"),
        ("blocks.1.mlp.hook_pre", "blocks.1.mlp.pre"),
        ("blocks.1.mlp.hook_post", "blocks.1.mlp.post"),
        ("blocks.1.hook_mlp_out", "blocks.1.mlp.out"),
        ("blocks.1.hook_resid_post", "blocks.1.out"),
    ],
)
def test_names_of_transformer_lens_are_aliases(theirs: str, ours: str) -> None:
    model = evaluated("gpt")
    captured = model(IDX, capture=[theirs, ours]).captured
    assert list(captured) == [theirs, ours]
    assert torch.equal(captured[theirs], captured[ours])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"capture": ["blocks.7.out"]},
            r"'blocks\.7\.out': this network has no such activation; did you mean blocks\.",
        ),
        ({"capture": ["blocks.1.attn.hook_patern"]}, r"did you mean blocks\.1\.attn\."),
        (
            {"intervene": {"xyz": torch.clone}},
            r"'xyz': this network has no such activation; network\.activations\(\)",
        ),
        ({"capture": "final"}, r"capture = 'final': must be a list"),
        (
            {"intervene": {"blocks.1.out": torch.clone, "blocks.1.hook_resid_post": torch.clone}},
            r"blocks\.1\.out is named twice",
        ),
        (
            {"intervene": {"final": lambda x: x[:, :1]}},
            r"final has shape \(2, 13, 12\), and became \(2, 1, 12\)",
        ),
        (
            {"intervene": {"final": lambda x: x.double()}},
            r"final has dtype torch\.float32, and became torch\.float64",
        ),
        ({"intervene": {"final": lambda x: None}}, r"final became NoneType; return a tensor"),
    ],
)
def test_a_mistake_is_one_message(asked: dict[str, Any], said: str) -> None:
    model = evaluated("gpt")
    with pytest.raises(ValueError, match=said):
        model(IDX, **asked)
    assert activations._session is None
    assert model(IDX).captured is None


@pytest.mark.parametrize(
    "name",
    [
        "gpt",
        *(
            pytest.param(name, marks=pytest.mark.stress)
            for name in ("tilelli", "local_gpt", "equilibrium", "crystal")
        ),
    ],
)
def test_a_compiled_pass_holds_no_trace(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same graph with the taps and without: read off what the compiler is given, in one piece."""
    from app.models import attention
    from app.models.equilibrium import block as equilibrium_block
    from app.models.equilibrium import network as equilibrium_network
    from app.models.gpt import network as gpt_network
    from app.models.local_gpt import attention as local_attention
    from app.models.local_gpt import network as local_network
    from app.models.tilelli import block, network

    def graph_of(looks: bool) -> list[str]:
        graphs: list[list[str]] = []

        def backend(module: Any, inputs: Any) -> Any:
            graphs.append([f"{node.op} {node.target}" for node in module.graph.nodes])
            return module.forward

        torch.compiler.reset()
        model = evaluated(name)
        compiled = torch.compile(lambda idx: model(idx).logits, backend=backend)
        with torch.no_grad():
            assert torch.equal(compiled(IDX), model(IDX).logits)
            # A look at a compiled network is one at the network as it is written, and what was compiled stays.
            n_graphs = len(graphs)
            if looks:
                model(IDX, capture=["final"])
            compiled(IDX)
        assert len(graphs) == n_graphs
        return [line for graph in graphs for line in graph]

    with_taps = graph_of(looks=True)
    for module in (
        attention, equilibrium_block, equilibrium_network, gpt_network, local_attention, local_network, block, network,
    ):  # fmt: skip
        if hasattr(module, "tap"):
            monkeypatch.setattr(module, "tap", lambda owner, own, x, below=None: x)
        if hasattr(module, "is_asked_for"):
            monkeypatch.setattr(module, "is_asked_for", lambda owner, own: False)
    assert graph_of(looks=False) == with_taps


def test_a_block_that_was_compiled_can_be_looked_into() -> None:
    model = evaluated("gpt")
    plain = copy.deepcopy(model)
    for index in range(N_LAYERS):
        model.blocks[index] = torch.compile(model.blocks[index], backend="eager")
    names = list(plain.activations())
    assert list(model.activations()) == names
    theirs, ours = (each(IDX, capture=names).captured for each in (model, plain))
    assert all(torch.equal(theirs[key], ours[key]) for key in names)
