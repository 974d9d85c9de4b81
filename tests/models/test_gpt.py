"""The baseline GPT against a hand-written one."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from app.models.gpt import GPT
from tests import tolerances
from tests.parity import relative_error


def small_network(**options: Any) -> GPT:
    torch.manual_seed(1)
    return GPT(**{"vocab_size": 13, "block_size": 19, "n_layers": 2, "n_heads": 3, "d_model": 12} | options)


def by_hand(weights: dict[str, Tensor], idx: Tensor, n_layers: int, n_heads: int) -> Tensor:
    """The same network written out, one head after the other, with the whole score matrix."""

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", torch.zeros(()))

    T = idx.shape[1]
    x = weights["tok_emb.weight"][idx] + weights["pos_emb.weight"][:T]
    for layer in range(n_layers):
        block = f"blocks.{layer}"
        h = norm(x, f"{block}.ln1")
        q, k, v = (linear(h, f"{block}.attn.{name}_proj").chunk(n_heads, -1) for name in "qkv")
        heads = []
        for q_h, k_h, v_h in zip(q, k, v, strict=True):
            scores = q_h @ k_h.transpose(1, 2) / math.sqrt(q_h.shape[-1])
            scores = scores + torch.full((T, T), float("-inf")).triu(1)
            heads.append(scores.softmax(-1) @ v_h)
        if f"{block}.attn.gate.weight" in weights:
            gates = 1 / (1 + torch.exp(-linear(h, f"{block}.attn.gate")))
            heads = [gates[..., i : i + 1] * y for i, y in enumerate(heads)]
        x = x + linear(torch.cat(heads, -1), f"{block}.attn.o_proj")
        h = norm(x, f"{block}.ln2")
        hidden = linear(h, f"{block}.mlp.fc")
        if f"{block}.mlp.gate.weight" in weights:
            gate = linear(h, f"{block}.mlp.gate")
            hidden = hidden * gate / (1 + torch.exp(-gate))
        else:
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + linear(hidden, f"{block}.mlp.proj")
    return linear(norm(x, "ln_f"), "head")


GATED = {"swiglu": True, "head_gates": True}


@pytest.mark.parametrize(
    "options", [{}, {"bias": True}, {"tie_weights": False}, GATED, GATED | {"bias": True}], ids=str
)
def test_equals_a_slow_transformer(options: dict[str, Any]) -> None:
    network = small_network(**options)
    with torch.no_grad():  # zeros and ones would hide mistakes
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape)) if parameter.dim() == 1 else parameter.mul_(10)
    idx = torch.randint(0, 13, (2, 17))
    targets = torch.randint(0, 13, (2, 17))
    output = network(idx, targets)
    leaves = {name: x.detach().requires_grad_() for name, x in network.state_dict(keep_vars=True).items()}
    if network.head.weight is network.tok_emb.weight:
        leaves["head.weight"] = leaves["tok_emb.weight"]
    logits = by_hand(leaves, idx, n_layers=2, n_heads=3)
    assert relative_error(output.logits, logits) <= tolerances.OUTPUT
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert relative_error(output.loss, loss) <= tolerances.OUTPUT
    output.loss.backward()
    loss.backward()
    for name, parameter in network.named_parameters():
        if name.endswith("k_proj.bias"):  # shifts all scores of a query alike: no gradient but rounding
            assert parameter.grad.abs().max() <= 1e-7, name
        else:
            assert relative_error(parameter.grad, leaves[name].grad) <= tolerances.GRADIENT, name


@pytest.mark.parametrize("training", [True, False])
def test_outputs_do_not_see_the_future(training: bool) -> None:
    network = small_network().train(training)
    idx = torch.randint(0, 13, (2, 19))
    changed = idx.clone()
    changed[:, 11:] = (changed[:, 11:] + 1) % 13
    before, after = network(idx).logits, network(changed).logits
    assert relative_error(after[:, :11], before[:, :11]) <= 1e-6
    assert (before[:, 11:] != after[:, 11:]).any()


def test_gates_are_read_token_by_token_too() -> None:
    network = small_network(**GATED).eval()
    idx = torch.randint(0, 13, (2, 19))
    logits, cache = network.prefill(idx[:, :7])
    stepped = [logits, *(network.step(idx[:, t], cache) for t in range(7, 19))]
    assert relative_error(torch.stack(stepped, 1), network(idx).logits[:, 6:]) <= tolerances.OUTPUT


def test_what_gates_weigh_and_cost() -> None:
    plain, gated = small_network(d_model=24), small_network(d_model=24, **GATED)

    def n_matrices(network: GPT) -> int:
        return sum(weight.numel() for weight in network.blocks.parameters() if weight.dim() == 2)

    assert gated.blocks[0].mlp.fc.weight.shape == (64, 24)
    assert (
        n_matrices(gated) - n_matrices(plain) == 2 * 3 * 24
    )  # two thirds of 96 are 64: the gates of 3 heads alone
    assert gated.flops_per_token(19) - plain.flops_per_token(19) == 6 * 2 * 3 * 24
    assert [plain.is_gpt2, gated.is_gpt2] == [True, False]


def test_initial_weights() -> None:
    network = small_network(d_model=96, n_layers=4, bias=True)
    assert network.tok_emb.weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert network.blocks[0].mlp.fc.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for onto_residual in (network.blocks[1].attn.o_proj, network.blocks[1].mlp.proj):
        assert onto_residual.weight.std().item() == pytest.approx(0.02 / math.sqrt(8), rel=0.05)
        assert onto_residual.bias.eq(0).all()
    assert network.blocks[0].ln1.weight.eq(1).all()


def test_tied_weights_are_one_parameter_and_survive_saving(tmp_path: Any) -> None:
    network = small_network()
    assert network.head.weight is network.tok_emb.weight
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    torch.manual_seed(2)
    other = GPT(13, 19, 2, 3, 12)
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert other.head.weight is other.tok_emb.weight
    idx = torch.randint(0, 13, (2, 19))
    assert torch.equal(other(idx).logits, network(idx).logits)


@pytest.mark.parametrize("tie_weights", [True, False])
def test_parameter_groups_cover_everything_once(tie_weights: bool) -> None:
    network = small_network(tie_weights=tie_weights, bias=True)
    groups = network.parameter_groups()
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted({id(p) for p in network.parameters()})
    assert all(p.dim() == 1 for p in groups[1]["params"])


def test_frozen_parameters_are_in_no_group() -> None:
    network = small_network()
    network.tok_emb.requires_grad_(False)
    assert all(p.requires_grad for group in network.parameter_groups() for p in group["params"])


def test_dropout_is_drawn_in_training_only() -> None:
    network = small_network(dropout=0.5)
    idx = torch.randint(0, 13, (2, 19))
    assert (network(idx).logits != network(idx).logits).any()
    network.eval()
    assert torch.equal(network(idx).logits, network(idx).logits)


def test_too_long_a_context_is_an_error() -> None:
    network = small_network()
    assert network.max_context == 19
    with pytest.raises(ValueError, match=r"20 tokens.*block_size = 19"):
        network(torch.zeros(1, 20, dtype=torch.int64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_heads": 5}, r"n_heads = 5: must divide d_model = 12"),
        ({"vocab_size": 0, "dropout": 1.5}, r"(?s)dropout = 1.5.*vocab_size = 0"),
        ({"n_heads": 0}, r"n_heads = 0"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_network(**options)


def test_dropout_falls_on_embedding_attention_and_both_branches() -> None:
    network = small_network(dropout=0.5, n_layers=1)
    block, x = network.blocks[0], torch.randn(2, 19, 12)
    entering: list[Tensor] = []
    block.register_forward_pre_hook(lambda block, inputs: entering.append(inputs[0]))
    network(torch.randint(0, 13, (2, 19)))
    attention: list[float] = []
    block.attn.core.register_forward_pre_hook(lambda core, inputs: attention.append(inputs[3]))
    for dropped in (entering[0], block.attn(x), block.mlp(x)):
        assert 0.4 < (dropped == 0).float().mean() < 0.6
    q = torch.randn(2, 3, 19, 4)
    torch.manual_seed(0)
    dropped = block.attn.core(q, q, q, 0.5)
    assert relative_error(dropped, F.scaled_dot_product_attention(q, q, q, is_causal=True)) > 0.1
    network.eval()
    block.attn(x)
    assert attention == [0.5, 0.5, 0.0]
