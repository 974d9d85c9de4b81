"""The Tilelli block and language model beyond the recorded cases."""

from typing import Any

import pytest
import torch

from app.models.tilelli import TernaryLinear, TilelliBlock, TilelliLM
from app.ops import use_form
from tests import tolerances
from tests.models.tilelli_cases import OPTIONS, VOCABULARY, batch, losses_and_gradients, small_network
from tests.parity import relative_error


def starve(network: TilelliLM) -> None:
    """Let every token of every block prefer the first bank of each pathway."""
    with torch.no_grad():
        for block in network.blocks:
            block.norm.bias.fill_(3.0)
            block.router.weight.view(-1, block.n_banks, 12).copy_(torch.tensor(0.1))
            block.router.weight.view(-1, block.n_banks, 12)[:, 0] = 0.2


@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize("pathways", [3, 5])
@pytest.mark.parametrize("n_banks", [1, 3])
def test_fast_network_equals_the_original_form(n_banks: int, pathways: int, quantize: bool) -> None:
    network = small_network(n_banks=n_banks, pathways=pathways, quantize=quantize)
    loss, aux_loss, gradient = losses_and_gradients(network)
    with use_form("naive"):
        expected, expected_aux, expected_gradient = losses_and_gradients(network)
    assert relative_error(loss, expected) <= tolerances.STEP_LOSS
    assert relative_error(aux_loss, expected_aux) <= tolerances.OUTPUT
    assert relative_error(gradient, expected_gradient) <= tolerances.STEP_GRADIENT


@pytest.mark.parametrize("n_banks", [1, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_fast_network_equals_the_original_form_with_every_option(
    options: dict[str, Any], n_banks: int
) -> None:
    network = small_network(n_banks=n_banks, **options)
    loss, aux_loss, gradient = losses_and_gradients(network)
    with use_form("naive"):
        expected, expected_aux, expected_gradient = losses_and_gradients(network)
    assert relative_error(loss, expected) <= tolerances.STEP_LOSS
    assert relative_error(aux_loss, expected_aux) <= tolerances.OUTPUT
    assert relative_error(gradient, expected_gradient) <= tolerances.STEP_GRADIENT


def test_both_forms_agree_along_a_run() -> None:
    network = small_network(n_banks=4)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    agreeing = 0
    for step in range(40):
        if step % 10 == 0:
            with use_form("naive"):
                expected, _, expected_gradient = losses_and_gradients(network)
                original = network(*batch())
            loss, _, gradient = losses_and_gradients(network)
            # A near-tie of a route may fall either way; that step then says nothing about the arithmetic.
            same_routes = all(
                torch.equal(a.bank_index, b.bank_index)
                for a, b in zip(network(*batch()).routing, original.routing, strict=True)
            )
            if same_routes:
                assert relative_error(loss, expected) <= tolerances.STEP_LOSS
                assert relative_error(gradient, expected_gradient) <= tolerances.STEP_GRADIENT
                agreeing += 1
        output = network(*batch())
        (output.loss + output.aux_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert agreeing >= 3


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"pathways": 3}, {"n_banks": 3, "router_noise": 0.5}, *[{"n_banks": 3} | o for o in OPTIONS]],
    ids=str,
)
def test_outputs_do_not_see_the_future(options: dict[str, Any], training: bool) -> None:
    network = small_network(**options).train(training)
    idx, _ = batch()
    changed = idx.clone()
    changed[:, 21:] = (changed[:, 21:] + 1) % VOCABULARY
    torch.manual_seed(0)
    before = network(idx).logits
    torch.manual_seed(0)
    after = network(changed).logits
    assert relative_error(after[:, :21], before[:, :21]) <= 1e-6
    assert (before[:, 21:] != after[:, 21:]).any()


def test_every_parameter_gets_a_gradient_even_of_a_starved_bank() -> None:
    network = small_network(n_banks=3)
    starve(network)
    output = network(*batch())
    assert all(decided.bank_index.eq(0).all() for decided in output.routing)
    (output.loss + output.aux_loss).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert network.blocks[0].dense.up.weight.grad[1:].eq(0).all()


# Among them, everything that could be tempted to ask for a value.
TEMPTING: dict[str, Any] = {
    "n_banks": 4,
    "top_k_routing": 6,
    "balance": "bias",
    "bank_gate": "bank",
    "router_noise": 0.1,
    "router_z_loss": 0.1,
    "pathway_balance": 0.1,
    "lsq": True,
    "hadamard": True,
    "path_norm": True,
}


@pytest.mark.parametrize(
    "options",
    [{"n_banks": 1}, {"n_banks": 4}, TEMPTING, {"n_banks": 4, "balance": "switch", "per_row": True}],
    ids=["one", "four", "every", "switch"],
)
def test_a_training_step_never_waits_for_a_value(options: dict[str, Any]) -> None:
    network = small_network(**options)
    idx, targets = batch()
    # Long enough that sorts and sums take the paths of real sizes.
    idx, targets = idx.repeat(8, 5), targets.repeat(8, 5)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        output = network(idx, targets)
        (output.loss + output.aux_loss).backward()
        with torch.no_grad():
            network.after_optimizer_step(1)
    names = {event.key for event in profile.key_averages()}
    assert "aten::embedding" in names
    assert names.isdisjoint({"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"})


def test_auxiliary_loss_is_a_function_of_the_means() -> None:
    network = small_network(n_banks=3, aux_weight=0.5)
    output = network(*batch())
    means = network.auxiliary_means(output)
    assert means.shape == (2, 15)
    assert means.requires_grad
    assert torch.equal(network.auxiliary_losses(means), output.aux_loss)
    by_hand = sum(
        0.5 * 0.01 * (decided.bank_probability - 1 / 3).square().mean() for decided in output.routing
    )
    assert relative_error(output.aux_loss, by_hand) <= tolerances.OUTPUT
    assert relative_error(output.aux_loss, 0.5 * sum(d.aux_loss for d in output.routing)) <= tolerances.OUTPUT


def test_a_single_bank_has_no_auxiliary_loss() -> None:
    network = small_network()
    output = network(*batch())
    assert output.aux_loss == 0
    assert output.routing[0].aux_loss == 0
    assert network.auxiliary_means(output) is None
    assert network.measures(output).keys() == {"pathway_share", "router_entropy"}


def test_measures_describe_the_routes() -> None:
    network = small_network(n_banks=3)
    idx, targets = batch()
    output = network(idx, targets)
    measures = network.measures(output)
    share, load = measures["pathway_share"], measures["bank_load"]
    assert share.axes[1].labels == ("local", "wide", "state", "sparse", "dense")
    assert share.values.shape == (2, 5)
    assert relative_error(share.values.sum(1), torch.ones(2)) <= tolerances.OUTPUT
    assert load.values.sum(-1).eq(idx.numel()).all()
    assert load.reduce == "sum"
    expected = torch.bincount(output.routing[1].bank_index[..., 2].flatten(), minlength=3)
    assert torch.equal(load.values[1, 2], expected)
    assert measures["bank_probability"].target == pytest.approx(1 / 15)
    entropy = network.blocks[0].router_entropy(network.tok_emb(idx)).mean()
    assert relative_error(measures["router_entropy"].values[0], entropy) <= tolerances.OUTPUT
    assert not any(measure.values.requires_grad for measure in measures.values())


def test_equal_banks_prefer_the_first() -> None:
    block = TilelliBlock(12, d_head=4, n_banks=3)
    torch.nn.init.zeros_(block.router.weight)
    _, routing = block(torch.randn(1, 5, 12))
    assert routing.bank_index.eq(0).all()
    assert relative_error(routing.pathway_weights, torch.full((1, 5, 5), 0.2)) <= tolerances.OUTPUT


def test_state_dict_names_and_shapes() -> None:
    block = TilelliBlock(12, d_head=4, kernel_size=3, wide_kernel_size=7, n_banks=2, dense_expand=3)
    assert {name: tuple(x.shape) for name, x in block.state_dict().items()} == {
        "norm.weight": (12,),
        "norm.bias": (12,),
        "router.weight": (10, 12),
        "local.weight": (2, 12, 3),
        "wide.weight": (2, 12, 7),
        "state.decay_logit": (2, 12),
        "state.input_gain": (2, 12),
        "state.output_gain": (2, 12),
        "sparse.query.weight": (2, 4, 12),
        "sparse.key.weight": (2, 4, 12),
        "sparse.value.weight": (2, 12, 12),
        "dense.up.weight": (2, 36, 12),
        "dense.down.weight": (2, 12, 36),
    }
    names = small_network().state_dict().keys()
    assert {"tok_emb.weight", "norm_f.weight", "norm_f.bias", "head.weight"} < names
    assert all(name.startswith(("tok_emb.", "norm_f.", "head.", "blocks.0.", "blocks.1.")) for name in names)


def test_initial_variances() -> None:
    torch.manual_seed(0)
    block = TilelliBlock(256, n_banks=4)
    expected = {
        block.router.weight: 1 / 256,
        block.local.weight: 1 / 5,
        block.wide.weight: 1 / 21,
        block.state.input_gain: 1 / 256,
        block.state.output_gain: 1 / 256,
        block.sparse.query.weight: 1 / 256,
        block.sparse.value.weight: 1 / 256,
        block.dense.up.weight: 1 / 256,
        block.dense.down.weight: 1 / 512,
    }
    for weight, variance in expected.items():
        assert weight.var().item() == pytest.approx(variance, rel=0.15)
    assert block.state.decay_logit.eq(1.5).all()


def test_parameter_groups_cover_everything_once() -> None:
    network = small_network(n_banks=2)
    groups = {group["name"]: group for group in network.parameter_groups()}
    grouped = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters())
    vectors = {id(p) for p in groups["vectors"]["params"]}
    names = {name for name, p in network.named_parameters() if id(p) in vectors}
    assert all("norm" in name or ".state." in name for name in names)
    assert len(names) == 2 * (2 + 3) + 2
    assert groups["matrices"]["decay"]
    assert not groups["vectors"]["decay"]


def test_dropout_is_drawn_in_training_only() -> None:
    network = small_network(dropout=0.5)
    idx, _ = batch()
    assert (network(idx).logits != network(idx).logits).any()
    network.eval()
    assert torch.equal(network(idx).logits, network(idx).logits)


def test_ignored_targets_do_not_count() -> None:
    network = small_network(n_banks=2)
    idx, targets = batch()
    targets = targets.clone()
    targets[1:, 5:] = -100
    output = network(idx, targets)
    counted = targets != -100
    expected = torch.nn.functional.cross_entropy(output.logits[counted], targets[counted])
    assert relative_error(output.loss, expected) <= tolerances.OUTPUT


@pytest.mark.parametrize(
    "options", [{}, TEMPTING, {"per_row": True, "balance": "switch"}], ids=["plain", "every", "switch"]
)
def test_bfloat16_autocast_trains(options: dict[str, Any]) -> None:
    network = small_network(**{"n_banks": 2} | options)
    with torch.autocast("cpu", torch.bfloat16):
        output = network(*batch())
    (output.loss + output.aux_loss).backward()
    assert output.loss.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pathways": 4}, "pathways = 4"),
        ({"n_banks": 0}, "n_banks = 0"),
        ({"top_k": 0}, "top_k = 0"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"n_layers": 0}, "n_layers = 0"),
        ({"aux_weight": float("nan")}, "aux_weight = nan"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_network(**options)


def test_several_mistakes_are_named_together() -> None:
    with pytest.raises(ValueError, match=r"(?s)pathways = 2.*n_banks = -1"):
        TilelliBlock(12, n_banks=-1, pathways=2)


def test_unquantised_linear_is_plain() -> None:
    linear = TernaryLinear(6, 4, quantize=False)
    x = torch.randn(3, 6)
    assert torch.equal(linear(x), x @ linear.weight.T)
