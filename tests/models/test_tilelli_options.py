"""What each option of a Tilelli network changes, and what it leaves alone."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from app.models.tilelli import (
    DiagonalSSM,
    SparseCausalAttention,
    TernaryFFN,
    TernaryLinear,
    TilelliBlock,
    TilelliLM,
)
from app.ops.hadamard.naive import hadamard_matrix
from tests import tolerances
from tests.models.tilelli_cases import VOCABULARY, WIDTH, batch, small_network
from tests.parity import relative_error
from tests.support.names import name_of


def results(**options: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    network = small_network(**options)
    output = network(*batch())
    return output.logits, output.aux_loss, network.state_dict()


# Options; whether they change logits and auxiliary loss; what they add to the state dict of a block.
CHANGES: list[tuple[dict[str, Any], bool, bool, set[str]]] = [
    ({"per_row": True}, True, True, set()),
    ({"hadamard": True}, True, True, set()),
    ({"lsq": True}, True, True, {f"{n}.step" for n in ("router", "local", "wide", "dense.up", "dense.down")}),
    ({"fp_attention": True}, True, True, set()),
    ({"top_k_routing": 4}, True, True, set()),
    ({"bank_gate": "bank"}, True, True, set()),
    ({"path_norm": True}, True, True, set()),
    ({"router_noise": 0.5}, True, True, set()),
    ({"balance": "switch"}, False, True, set()),
    ({"balance": "none"}, False, True, set()),
    ({"balance": "bias"}, False, True, {"router_bias"}),
    ({"router_z_loss": 0.1}, False, True, set()),
    ({"pathway_balance": 0.1}, False, True, set()),
    ({"aux_weight": 2.0}, False, True, set()),
    ({"skip_threshold": 0.9, "skip_mode": "per_token"}, False, False, set()),
    # Without an effect beside the others: the same bits.
    ({"top_k_routing": 15}, False, False, set()),
    ({"top_k_routing": 99}, False, False, set()),
]


@pytest.mark.parametrize(("options", "changes_logits", "changes_aux", "added"), CHANGES, ids=name_of)
def test_option_changes_what_it_says(
    options: dict[str, Any], changes_logits: bool, changes_aux: bool, added: set[str]
) -> None:
    logits, aux_loss, state = results(n_banks=3)
    new_logits, new_aux_loss, new_state = results(n_banks=3, **options)
    assert torch.equal(logits, new_logits) != changes_logits
    assert torch.equal(aux_loss, new_aux_loss) != changes_aux
    assert new_state.keys() - state.keys() == {f"blocks.{i}.{name}" for i in (0, 1) for name in added}
    for name, parameter in state.items():  # neither names nor the initial draws depend on an option
        assert torch.equal(parameter, new_state[name]), name


@pytest.mark.parametrize(
    "options", [{"bank_gate": "bank"}, {"balance": "switch"}, {"balance": "bias"}], ids=name_of
)
def test_bank_options_change_nothing_with_a_single_bank(options: dict[str, Any]) -> None:
    logits, aux_loss, _ = results()
    new_logits, new_aux_loss, _ = results(**options)
    assert torch.equal(logits, new_logits)
    assert torch.equal(aux_loss, new_aux_loss)


@pytest.mark.parametrize(
    "options", [{"hadamard": True}, {"per_row": True}, {"fp_attention": True}], ids=name_of
)
def test_quantiser_options_change_nothing_in_full_precision(options: dict[str, Any]) -> None:
    logits, _, _ = results(quantize=False)
    assert torch.equal(results(quantize=False, **options)[0], logits)


@pytest.mark.parametrize(
    ("options", "inert"),
    [
        ({"hadamard": True}, ("local", "wide", "state", "sparse")),
        ({"fp_attention": True}, ("local", "wide", "state", "dense")),
    ]
    + [({name: True}, ("state", "sparse")) for name in ("per_row", "lsq")],
    ids=name_of,
)
def test_quantiser_options_reach_the_right_pathways(options: dict[str, Any], inert: tuple[str, ...]) -> None:
    h = torch.randn(2, 19, WIDTH)
    bank = torch.randint(0, 3, (2, 19))
    blocks = []
    for arguments in ({}, options):
        torch.manual_seed(0)
        blocks.append(TilelliBlock(WIDTH, d_head=4, n_banks=3, **arguments))
    for name in blocks[0].pathway_names:
        plain, changed = (getattr(block, name)(h, bank) for block in blocks)
        assert torch.equal(plain, changed) == (name in inert), name
    same_router = torch.equal(blocks[0].router(h), blocks[1].router(h))
    assert same_router == ("fp_attention" in options)


@pytest.mark.parametrize("width", [16, 12, 7])
def test_hadamard_layers_quantise_the_rotated_weight(width: int) -> None:
    x = torch.randn(5, width)
    matrix = hadamard_matrix(width).float()

    def ternary(weight: Tensor) -> Tensor:
        scale = weight.abs().mean()
        return scale * (weight / scale).round().clamp(-1, 1)

    linear = TernaryLinear(width, 6, hadamard=True)
    expected = (x @ matrix) @ ternary(linear.weight @ matrix).T
    assert relative_error(linear(x), expected) <= tolerances.OUTPUT

    ffn = TernaryFFN(width, expand=3, n_banks=1, hadamard=True)
    wide = hadamard_matrix(3 * width).float()
    hidden = F.gelu((x @ matrix) @ ternary(ffn.up.weight[0] @ matrix).T)
    expected = (hidden @ wide) @ ternary(ffn.down.weight[0] @ wide).T
    assert relative_error(ffn(x.unsqueeze(0)).squeeze(0), expected) <= tolerances.OUTPUT


@pytest.mark.parametrize("hadamard", [False, True])
def test_learned_steps_start_at_twice_the_mean_magnitude(hadamard: bool) -> None:
    block = TilelliBlock(WIDTH, d_head=4, n_banks=3, lsq=True, hadamard=hadamard)
    shapes = {name: tuple(p.shape) for name, p in block.named_parameters() if name.endswith(".step")}
    banked = ("local", "wide", "dense.up", "dense.down")
    assert shapes == {"router.step": (1,)} | {f"{name}.step": (3,) for name in banked}
    for name in ("router", *banked):
        part = block.get_submodule(name)
        weight = part.weight.detach().view(part.step.shape[0], -1, part.weight.shape[-1])
        if hadamard and name not in ("local", "wide"):
            weight = weight @ hadamard_matrix(weight.shape[-1]).float()
        assert relative_error(part.step, 2 * weight.abs().mean((1, 2))) <= tolerances.OUTPUT


def test_learned_steps_do_not_decay() -> None:
    network = small_network(n_banks=2, lsq=True)
    decay = {id(p): group["decay"] for group in network.parameter_groups() for p in group["params"]}
    assert len(decay) == len(list(network.parameters()))
    steps = [p for name, p in network.named_parameters() if name.endswith(".step")]
    assert len(steps) == 10
    assert not any(decay[id(p)] for p in steps)
    assert not hasattr(network.head, "step") or network.head.step is None


def test_state_gains_of_unit_variance() -> None:
    torch.manual_seed(0)
    original = DiagonalSSM(4096)
    torch.manual_seed(0)
    unit = DiagonalSSM(4096, init="unit")
    for name in ("input_gain", "output_gain"):
        assert getattr(unit, name).var().item() == pytest.approx(1, rel=0.1)
        assert relative_error(getattr(unit, name), 64 * getattr(original, name)) <= tolerances.OUTPUT
    assert torch.equal(unit.decay_logit, original.decay_logit)
    block = TilelliBlock(4096, d_head=1, pathways=3, state_init="unit", quantize=False)
    assert block.state.input_gain.var().item() == pytest.approx(1, rel=0.1)


def test_path_norm_mixes_every_pathway_at_one_scale() -> None:
    torch.manual_seed(0)
    block = TilelliBlock(WIDTH, d_head=4, path_norm=True)
    x = torch.randn(2, 9, WIDTH)
    h = block.norm(x)
    y, routing = block(x)
    expected = x.clone()
    for p, name in enumerate(block.pathway_names):
        output = getattr(block, name)(h)
        scaled = output / (output.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        expected = expected + routing.pathway_weights[..., p, None] * scaled
    assert relative_error(y, expected) <= tolerances.OUTPUT


def test_path_norm_measures_in_fp32() -> None:
    block = TilelliBlock(WIDTH, d_head=4, path_norm=True)
    output = (torch.randn(64, WIDTH) * 3).bfloat16()
    wide = output.float()
    expected = (wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt()).bfloat16()
    scaled = block.scaled(output)
    assert scaled.dtype == torch.bfloat16
    assert torch.equal(scaled, expected)
    tiny = block.scaled(torch.full((1, WIDTH), 1e-30).bfloat16())
    assert tiny.isfinite().all()


@pytest.mark.parametrize("balance", ["original", "switch"])
def test_a_single_kept_entry_leaves_the_router_without_a_gradient(balance: str) -> None:
    network = small_network(n_banks=3, top_k_routing=1, balance=balance, pathway_balance=1.0)
    output = network(*batch())
    (output.loss + output.aux_loss).backward()
    for block in network.tilelli_blocks:
        assert block.router.weight.grad.abs().max() <= 1e-6 * block.local.weight.grad.abs().max()
        assert block.local.weight.grad.any()


@pytest.mark.parametrize("bank_gate", ["sum", "bank"])
def test_router_weights_are_those_before_top_k_of_the_banks_after_it(bank_gate: str) -> None:
    torch.manual_seed(0)
    block = TilelliBlock(WIDTH, d_head=4, n_banks=3, top_k_routing=4, bank_gate=bank_gate)
    x = torch.randn(2, 9, WIDTH)
    _, routing = block(x)
    r = block.router(block.norm(x)).softmax(-1).view(2, 9, 5, 3)
    own = r.gather(-1, routing.bank_index.unsqueeze(-1)).squeeze(-1)
    expected = r.sum(-1) if bank_gate == "sum" else own
    assert relative_error(block.router_weights(x), expected) <= tolerances.OUTPUT


def test_routes_are_probabilities_in_fp32_under_autocast() -> None:
    block = TilelliBlock(WIDTH, d_head=4, n_banks=3)
    with torch.autocast("cpu", torch.bfloat16):
        _, routing = block(torch.randn(2, 9, WIDTH))
    assert routing.pathway_weights.dtype == torch.float32
    assert relative_error(routing.pathway_weights.sum(-1), torch.ones(2, 9)) <= tolerances.OUTPUT


@pytest.mark.parametrize(
    "options",
    [{}, {"n_banks": 3, "path_norm": True}, {"n_banks": 2, "lsq": True, "dropout": 0.2}],
    ids=name_of,
)
def test_weights_in_bfloat16_train_infer_and_step(options: dict[str, Any]) -> None:
    network = small_network(**options).bfloat16()
    idx, targets = batch()
    output = network(idx, targets)
    assert output.logits.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32
    (output.loss + output.aux_loss).backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())
    network.eval()
    assert network.infer(idx).dtype == torch.bfloat16
    with torch.no_grad():
        _, cache = network.prefill(idx[:, :4])
        assert network.step(idx[:, 4], cache).dtype == torch.bfloat16


def test_top_k_routing_keeps_the_largest_and_the_first_of_equals() -> None:
    torch.manual_seed(0)
    block = TilelliBlock(WIDTH, d_head=4, n_banks=3, top_k_routing=4)
    x = torch.randn(2, 9, WIDTH)
    _, routing = block(x)
    r = block.router(block.norm(x)).softmax(-1)
    largest = r.sort(dim=-1, descending=True, stable=True).indices[..., :4]
    kept = torch.zeros_like(r).scatter(-1, largest, r.gather(-1, largest))
    kept = (kept / kept.sum(-1, keepdim=True)).view(2, 9, 5, 3)
    assert relative_error(routing.pathway_weights, kept.sum(-1)) <= tolerances.OUTPUT
    assert relative_error(routing.bank_probability, kept.mean((0, 1))) <= tolerances.OUTPUT
    assert torch.equal(routing.bank_index, kept.argmax(-1))
    dropped = routing.pathway_weights == 0
    assert dropped.any()
    assert routing.bank_index[dropped].eq(0).all()
    # Only these two see r before.
    whole = r.view(2, 9, 5, 3).sum(-1)
    assert relative_error(block.router_weights(x), whole) <= tolerances.OUTPUT
    assert relative_error(block.router_entropy(x), -(whole * whole.log()).sum(-1)) <= tolerances.OUTPUT

    torch.nn.init.zeros_(block.router.weight)
    _, routing = block(x)
    expected = torch.tensor([0.75, 0.25, 0, 0, 0]).expand(2, 9, 5)
    assert relative_error(routing.pathway_weights, expected) <= tolerances.OUTPUT


def test_bank_gate_weighs_by_the_chosen_bank_alone() -> None:
    torch.manual_seed(0)
    block = TilelliBlock(WIDTH, d_head=4, n_banks=3, bank_gate="bank")
    x = torch.randn(2, 9, WIDTH)
    y, routing = block(x)
    r = block.router(block.norm(x)).softmax(-1).view(2, 9, 5, 3)
    assert torch.equal(routing.bank_index, r.argmax(-1))
    assert relative_error(routing.pathway_weights, r.amax(-1)) <= tolerances.OUTPUT
    assert torch.equal(block.router_weights(x), routing.pathway_weights)
    h, expected = block.norm(x), x.clone()
    for p, name in enumerate(block.pathway_names):
        output = getattr(block, name)(h, routing.bank_index[..., p])
        expected = expected + r.amax(-1)[..., p, None] * output
    assert relative_error(y, expected) <= tolerances.OUTPUT


def router_direction(bank_gate: str) -> Tensor:
    """Gradient of a task loss by the logits of one pathway's banks, over their probabilities, ``(tokens, N)``."""
    torch.manual_seed(0)
    block = TilelliBlock(WIDTH, d_head=4, n_banks=3, bank_gate=bank_gate)
    logits: list[Tensor] = []
    block.router.register_forward_hook(
        lambda module, inputs, output: output.retain_grad() or logits.append(output)
    )
    y, _ = block(torch.randn(2, 9, WIDTH))
    (y * torch.randn_like(y)).sum().backward()
    gradient = logits[0].grad
    assert gradient is not None
    return (gradient / logits[0].softmax(-1)).view(-1, 5, 3)[:, 0].detach()


def test_only_the_bank_gate_lets_the_task_compare_banks() -> None:
    by_sum, by_bank = router_direction("sum"), router_direction("bank")
    assert relative_error(by_sum, by_sum.mean(-1, keepdim=True).expand_as(by_sum)) <= tolerances.GRADIENT
    assert relative_error(by_bank, by_bank.mean(-1, keepdim=True).expand_as(by_bank)) >= 0.1


def test_router_noise_samples_routes_in_training_only() -> None:
    network = small_network(n_banks=3, router_noise=1.0, router_z_loss=0.0)
    idx, _ = batch()
    first, second = (network(idx).routing[0].bank_index for _ in range(2))
    assert (first != second).any()
    network.eval()
    quiet = small_network(n_banks=3).eval()
    assert torch.equal(network(idx).logits, quiet(idx).logits)
    # With a scale of 1 the largest of noisy logits is a draw from the softmax.
    torch.manual_seed(0)
    block = TilelliBlock(WIDTH, d_head=4, pathways=3, n_banks=2, router_noise=1.0, top_k_routing=1)
    x = torch.randn(1, 1, WIDTH).expand(8, 2500, WIDTH)
    with torch.no_grad():
        r = block.router(block.norm(x[:1, :1])).softmax(-1).view(3, 2)
        drawn = block._route(block.norm(x)).bank_probability
    assert (drawn - r).abs().max() < 0.02


def test_dropout_falls_on_the_embedding_and_the_mixed_output_alone() -> None:
    torch.manual_seed(0)
    block = TilelliBlock(WIDTH, d_head=4, dropout=0.5)
    x = torch.randn(2, 33, WIDTH)
    mixed = block.eval()(x)[0] - x
    change = block.train()(x)[0] - x
    dropped = change == 0
    assert 0.4 < dropped.float().mean() < 0.6  # the stream itself passes
    assert relative_error(change[~dropped], 2 * mixed[~dropped]) <= tolerances.OUTPUT

    network = small_network(dropout=0.5)
    entering: list[Tensor] = []
    network.blocks[0].register_forward_pre_hook(lambda block, inputs: entering.append(inputs[0]))
    idx, _ = batch()
    network(idx)
    dropped = entering[0] == 0
    assert 0.4 < dropped.float().mean() < 0.6
    assert torch.equal(entering[0][~dropped], 2 * network.embed(idx)[~dropped])


def test_learned_positions() -> None:
    network = small_network(position="learned", block_size=40)
    plain = small_network()
    idx, _ = batch()
    assert network.max_context == 40
    assert plain.max_context is None
    assert network.state_dict().keys() - plain.state_dict().keys() == {"pos_emb.weight"}
    assert network.pos_emb.weight.shape == (40, WIDTH)
    assert network.is_matrix("pos_emb.weight", network.pos_emb.weight)
    assert relative_error(network.embed(idx), network.tok_emb(idx) + network.pos_emb.weight[:37]) <= 1e-6
    assert torch.equal(network.embed(idx[:, 5:9], 5), network.embed(idx)[:, 5:9])
    with pytest.raises(ValueError, match="42 tokens: this network reads at most block_size = 40"):
        network(torch.zeros(1, 42, dtype=torch.int64))
    torch.nn.init.zeros_(network.pos_emb.weight)
    assert torch.equal(network(idx).logits, plain(idx).logits)
    wide = TilelliLM(300, 64, 1, position="learned", block_size=300)
    for embedding in (wide.tok_emb, wide.pos_emb):
        assert embedding.weight.std().item() == pytest.approx(1 / 8, rel=0.05)


def test_a_network_is_built_again_from_its_description() -> None:
    network = small_network(n_banks=2, lsq=True, balance="bias", position="learned", block_size=40)
    described = network.description()
    assert described["class_path"] == "app.models.tilelli.network.TilelliLM"
    assert all(isinstance(value, str | int | float | None) for value in described["init_args"].values())
    again = TilelliLM(**described["init_args"])
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(batch()[0]).logits, network(batch()[0]).logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip_mode": "sometimes"}, "skip_mode = sometimes: must be one of per_call, per_token"),
        ({"skip_threshold": 1.5}, r"skip_threshold = 1.5: must lie in \[0, 1\]"),
        ({"skip_threshold": float("nan")}, "skip_threshold = nan"),
        ({"lsq": True, "quantize": False}, "lsq = true: without quantize nothing is quantised"),
        ({"lsq": True, "per_row": True}, "lsq = true: learns one step per weight and bank"),
        ({"top_k_routing": -1}, "top_k_routing = -1: must be at least 0"),
        ({"bank_gate": "both"}, "bank_gate = both: must be one of sum, bank"),
        ({"balance": "fair"}, "balance = fair: must be one of original, switch, bias, none"),
        ({"state_init": "zero"}, "state_init = zero: must be one of original, unit"),
        ({"router_z_loss": -0.1}, "router_z_loss = -0.1: must be at least 0"),
        ({"router_noise": float("inf")}, "router_noise = inf: must be finite and at least 0"),
        ({"pathway_balance": -1.0}, "pathway_balance = -1.0: must be at least 0"),
        ({"position": "rotary"}, "position = rotary: must be one of none, learned"),
        ({"position": "learned"}, "block_size = null: learned positions need one"),
        ({"position": "learned", "block_size": 0}, "block_size = 0"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_network(**options)


def test_mistakes_of_network_and_block_are_named_together() -> None:
    with pytest.raises(ValueError, match=r"(?s)position.*aux_weight.*n_banks.*skip_mode.*balance.*lsq"):
        small_network(
            aux_weight=-1, position="x", n_banks=0, skip_mode="x", balance="x", lsq=True, quantize=False
        )


def test_parts_name_their_mistakes() -> None:
    with pytest.raises(ValueError, match="init = zero: must be one of original, unit"):
        DiagonalSSM(4, init="zero")
    with pytest.raises(ValueError, match="top_k = 0: must be at least 1"):
        SparseCausalAttention(4, top_k=0)


def test_a_part_refuses_a_step_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="nothing is quantised"):
        TernaryLinear(4, 4, quantize=False, lsq=True)
    with pytest.raises(ValueError, match="one step per weight"):
        TernaryFFN(4, per_row=True, lsq=True)


def test_ternary_weights_are_what_the_network_computes_with() -> None:
    for options in ({}, {"lsq": True}, {"per_row": True}):
        network = small_network(n_banks=2, **options)
        plain = TilelliLM(
            **network.description()["init_args"] | {"quantize": False, "lsq": False, "per_row": False}
        )
        state = {k: v for k, v in network.state_dict().items() if not k.endswith(".step")}
        found = network.ternary_weights()
        for name, (trits, scale, layer) in found.items():
            assert trits.dtype == torch.int8
            assert scale.dtype == torch.float32
            assert trits.shape == state[name].shape
            assert set(trits.unique().tolist()) <= {-1, 0, 1}
            assert layer == (int(name.split(".")[1]) if name.startswith("blocks.") else None)
            state[name] = trits * scale
        plain.load_state_dict(state)
        assert torch.equal(plain(batch()[0]).logits, network(batch()[0]).logits)
        parts = (
            "router",
            "local",
            "wide",
            "sparse.query",
            "sparse.key",
            "sparse.value",
            "dense.up",
            "dense.down",
        )
        assert found.keys() == {"head.weight"} | {
            f"blocks.{i}.{part}.weight" for i in (0, 1) for part in parts
        }
        assert found["head.weight"].scale.numel() == 1


def test_ternary_weights_with_hadamard_are_those_of_the_rotated_weight() -> None:
    network = small_network(n_banks=2, hadamard=True)
    part = network.tilelli_blocks[0].dense.down
    trits, scale, _ = network.ternary_weights()["blocks.0.dense.down.weight"]
    matrix = hadamard_matrix(2 * WIDTH).float()
    rotated = part.weight.detach() @ matrix
    expected = (rotated / rotated.abs().mean((1, 2), keepdim=True)).round().clamp(-1, 1)
    assert torch.equal(trits.float(), expected)
    assert relative_error((trits * scale) @ matrix, part()) <= tolerances.OUTPUT


def test_ternary_weights_of_what_is_not_quantised() -> None:
    assert small_network(quantize=False).ternary_weights() == {}
    assert not any("sparse" in name for name in small_network(fp_attention=True).ternary_weights())
    assert "blocks.0.local.weight" in small_network(fp_attention=True).ternary_weights()


def test_the_head_always_has_one_mean_magnitude() -> None:
    assert small_network(per_row=True, hadamard=True).head.weight.shape == (VOCABULARY, WIDTH)
    head = small_network(per_row=True, hadamard=True, fp_attention=True).head
    plain = TernaryLinear(WIDTH, VOCABULARY)
    plain.load_state_dict(head.state_dict())
    h = torch.randn(4, WIDTH)
    assert torch.equal(head(h), plain(h))  # one absmean scale whatever the blocks do
