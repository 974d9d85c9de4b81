"""Any architecture made to learn by local rules: what is reached, what is refused."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from app.models.equilibrium import EquilibriumLM
from app.models.equilibrium.attention_residual import AttentionResidual
from app.models.gpt import GPT
from app.models.local_linear import LocalLinear, learn_locally, local_linears
from tests.models.test_local_linear import BLOCK, RULES, VOCAB, batch, gradient, gradients
from tests.parity import relative_error


def gpt(**options: Any) -> GPT:
    torch.manual_seed(1)
    return GPT(
        **{"vocab_size": VOCAB, "block_size": BLOCK, "n_layers": 2, "n_heads": 2, "d_model": 16} | options
    )


@pytest.mark.parametrize("tie_weights", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_any_architecture_can_learn_locally(rule: Any, tie_weights: bool) -> None:
    network, plain = gpt(tie_weights=tie_weights, bias=True), gpt(tie_weights=tie_weights, bias=True)
    before = {name: id(parameter) for name, parameter in network.named_parameters()}
    learn_locally(network, rule)
    assert {name: id(parameter) for name, parameter in network.named_parameters()} == before
    assert len(list(local_linears(network))) == (12 if rule == "dfa" else 13)
    idx, targets = batch()
    assert torch.equal(network(idx).logits, plain(idx).logits)
    found = gradients(network, network(idx, targets).loss)
    exact = gradients(plain, plain(idx, targets).loss)
    below = [name for name in exact if name.startswith("blocks.0") and name.endswith("_proj.weight")]
    assert all(relative_error(found[name], exact[name]) >= 0.1 for name in below)
    with network.with_rule("bp"):
        assert (
            relative_error(
                gradient(network, network(idx, targets).loss),
                torch.cat([part.flatten() for part in exact.values()]),
            )
            <= 1e-6
        )
    counts = network.parameter_counts()
    assert counts["feedback"] == sum(b.numel() for b in network.buffers() if b.dim() == 2)
    assert counts["trainable"] == plain.parameter_counts()["trainable"]
    assert (counts["feedback"] > 0) == (rule != "sign_sym")


def test_what_cannot_learn_locally_is_named() -> None:
    with pytest.raises(ValueError, match="head = 'output': no linear layer has this name; known: blocks"):
        learn_locally(gpt(), "dfa", head="output")
    with pytest.raises(ValueError, match=r"has no nn\.Linear"):
        learn_locally(nn.LayerNorm(3), "fa")


def test_a_copy_learns_from_its_own_logits() -> None:
    network = gpt()
    learn_locally(network, "dfa")
    twin = copy.deepcopy(network)
    idx, targets = batch()
    expected = gradient(network, network(idx, targets).loss)
    output = twin(idx, targets)
    network(idx, targets)
    assert torch.equal(gradient(twin, output.loss), expected)


class Shared(nn.Module):
    """One layer under two names, between an embedding and a head that also has two."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 8)
        self.first = nn.Linear(8, 8)
        self.parts = nn.ModuleDict({"again": self.first})
        self.head = nn.Linear(8, VOCAB)
        self.also = self.head

    def forward(self, idx: Tensor) -> Tensor:
        y: Tensor = self.head(self.parts["again"](self.first(self.embed(idx))))
        return y


@pytest.mark.parametrize("rule", RULES)
def test_a_layer_in_two_places_stays_one(rule: Any) -> None:
    network = Shared()
    weight = network.first.weight
    learn_locally(network, rule)
    assert isinstance(network.first, LocalLinear)
    assert network.parts["again"] is network.first
    assert network.also is network.head
    assert isinstance(network.head, LocalLinear) == (rule != "dfa")
    assert network.first.weight is weight
    idx, _ = batch()
    inputs: list[Tensor] = []
    network.first.register_forward_hook(lambda layer, args, y: inputs.append(args[0].detach()))
    logits = network(idx)
    e = torch.randn(logits.shape)
    (found,) = torch.autograd.grad(logits, weight, e)
    if rule == "dfa":
        expected = sum(torch.einsum("btv,vo,bti->oi", e, network.first.feedback, x) for x in inputs)
        assert relative_error(found, expected) <= 1e-5  # type: ignore[arg-type]


class Transposing(nn.Module):
    """Reads its tokens in another order than its logits have."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 8)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, VOCAB)

    def forward(self, idx: Tensor) -> Tensor:
        y: Tensor = self.head(self.mix(self.embed(idx).transpose(0, 1)).transpose(0, 1))
        return y


def test_inputs_in_another_order_than_the_logits_are_an_error() -> None:
    network = Transposing()
    learn_locally(network, "dfa")
    idx, _ = batch(4)
    message = r"layer 'mix' learns by dfa from an input \(13, 4, 8\), which is not ordered as the logits \(4, 13, 11\)"
    with pytest.raises(RuntimeError, match=message):
        network(idx)
    with torch.no_grad():
        network(idx)


def test_what_would_be_lost_is_refused() -> None:
    """And the network is then as it was."""
    wrong: Any = "bp"
    with pytest.raises(ValueError, match="method = 'bp': must be one of fa, dfa, sign_sym"):
        learn_locally(gpt(), wrong)
    network = gpt()
    learn_locally(network, "fa")
    with pytest.raises(ValueError, match="network = GPT: its layers have a learning rule already"):
        learn_locally(network, "dfa")
    for register in ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"):
        network = gpt()
        handle = getattr(network.blocks[1].mlp.fc, register)(lambda *args: None)
        with pytest.raises(ValueError, match=r"remove the hooks of blocks\.1\.mlp\.fc first"):
            learn_locally(network, "fa")
        assert not list(local_linears(network))
        handle.remove()
        learn_locally(network, "fa")
    network = gpt()
    with pytest.raises(ValueError, match=r"sparse_k = 20: must lie in \[0, in_features\] = \[0, 16\]"):
        learn_locally(network, "fa", init="sparse", sparse_k=20)
    assert not list(local_linears(network))


def test_a_weight_that_is_read_backwards_keeps_its_gradient() -> None:
    torch.manual_seed(0)
    layer = AttentionResidual(8).double()
    z, history = torch.randn(2, 5, 8).double(), torch.randn(3, 2, 5, 8).double()
    scores = torch.einsum("btd,nbtd->nbt", layer.query(z), history @ layer.key.weight.T) / 8**0.5
    expected = layer.norm(z + torch.einsum("nbt,nbtd->btd", scores.softmax(0), history))
    assert relative_error(layer(z, history), expected) <= 1e-12
    assert sorted(layer.state_dict()) == ["key.weight", "norm.bias", "norm.weight", "query.weight"]
    learn_locally(layer, "fa")
    assert [local.layer_name for local in local_linears(layer)] == ["query"]


def test_another_architecture_is_reached_but_for_its_keys_over_depth() -> None:
    network = EquilibriumLM(vocab_size=VOCAB, d_model=16, n_heads=2, n_layers=2, d_ff=24)
    learn_locally(network, "fa")
    left = {name.rpartition(".")[2] for name, m in network.named_modules() if isinstance(m, nn.Linear)}
    left -= {local.layer_name.rpartition(".")[2] for local in local_linears(network)}
    assert left == {"key"}
    network(*batch()).loss.backward()
