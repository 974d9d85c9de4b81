"""The losses and the bias that keep banks and pathways in use."""

from typing import Any

import pytest
import torch
from torch import Tensor

from app.models.tilelli import TilelliBlock, TilelliLM
from app.models.tilelli.routing import pathway_entropy
from tests import tolerances
from tests.models.tilelli_cases import OPTIONS, WIDTH, batch, small_network
from tests.parity import relative_error


def routed(**options: Any) -> tuple[TilelliBlock, Tensor, Tensor, Any]:
    """A block, its router's logits ``(B, T, P, N)`` with their graph, r of the same shape, and its decisions."""
    torch.manual_seed(0)
    block = TilelliBlock(WIDTH, d_head=4, **{"n_banks": 3} | options)
    x = torch.randn(2, 33, WIDTH)
    seen: list[Tensor] = []
    block.router.register_forward_hook(
        lambda module, inputs, output: output.retain_grad() or seen.append(output)
    )
    _, routing = block(x)
    return block, seen[0], seen[0].softmax(-1).unflatten(-1, (-1, block.n_banks)), routing


def test_switch_is_the_product_of_load_and_probability() -> None:
    _, logits, r, routing = routed(balance="switch")
    load = torch.nn.functional.one_hot(r.argmax(-1), 3).float().mean((0, 1))
    share = (r / r.sum(-1, keepdim=True)).mean((0, 1))
    expected = 0.01 * (3 * (load * share).sum(-1)).mean()
    assert relative_error(routing.aux_loss, expected) <= tolerances.OUTPUT
    gradient, expected_gradient = (
        torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (routing.aux_loss, expected)
    )
    assert relative_error(gradient, expected_gradient) <= tolerances.GRADIENT
    # A step against the gradient makes what is used too much less likely.
    later = (logits - 1e4 * gradient).softmax(-1).view_as(r)
    later_share = (later / later.sum(-1, keepdim=True)).mean((0, 1))
    most = load.argmax(-1, keepdim=True)
    assert (later_share.gather(1, most) < share.gather(1, most)).all()


def test_switch_is_smallest_where_banks_are_even() -> None:
    block, _, _, _ = routed(balance="switch")
    even = torch.full((5, 3), 1 / 3)
    one = torch.tensor([1.0, 0, 0]).expand(5, 3)
    assert block.losses.total(torch.cat([even.flatten(), even.flatten()])).item() == pytest.approx(0.01)
    assert block.losses.total(torch.cat([one.flatten(), one.flatten()])).item() == pytest.approx(0.03)


@pytest.mark.parametrize("balance", ["none", "bias"])
def test_no_loss_and_no_means(balance: str) -> None:
    network = small_network(n_banks=3, balance=balance)
    output = network(*batch())
    assert output.aux_loss == 0
    assert output.routing[0].aux_loss == 0
    assert network.auxiliary_means(output) is None
    assert output.loss is not None
    output.loss.backward()


@pytest.mark.parametrize("n_banks", [1, 3])
def test_router_z_loss(n_banks: int) -> None:
    _, logits, _, routing = routed(balance="none", router_z_loss=0.3, n_banks=n_banks)
    expected = 0.3 * logits.exp().sum(-1).log().square().mean()
    assert relative_error(routing.aux_loss, expected) <= tolerances.OUTPUT
    (gradient,) = torch.autograd.grad(routing.aux_loss, logits, retain_graph=True)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    assert relative_error(gradient, expected_gradient) <= tolerances.GRADIENT


def test_router_z_loss_judges_the_logits_without_noise() -> None:
    noisy, quiet = (
        routed(balance="none", router_z_loss=0.3, router_noise=noise)[3].aux_loss for noise in (2.0, 0.0)
    )
    assert torch.equal(noisy, quiet)


@pytest.mark.parametrize("bank_gate", ["sum", "bank"])
@pytest.mark.parametrize("n_banks", [1, 3])
def test_pathway_balance(n_banks: int, bank_gate: str) -> None:
    _, logits, r, routing = routed(balance="none", pathway_balance=0.3, n_banks=n_banks, bank_gate=bank_gate)
    expected = 0.3 * (r.sum(-1).mean((0, 1)) - 1 / 5).square().mean()
    assert relative_error(routing.aux_loss, expected) <= tolerances.OUTPUT
    (gradient,) = torch.autograd.grad(routing.aux_loss, logits, retain_graph=True)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    assert relative_error(gradient, expected_gradient) <= tolerances.GRADIENT


def test_losses_add_up() -> None:
    parts = [{"router_z_loss": 0.1}, {"pathway_balance": 0.2}]
    separate = sum(routed(balance="none", **part)[3].aux_loss for part in parts)
    for balance in ("original", "switch"):
        own = routed(balance=balance)[3].aux_loss
        together = routed(balance=balance, router_z_loss=0.1, pathway_balance=0.2)[3].aux_loss
        assert relative_error(together, own + separate) <= tolerances.OUTPUT


@pytest.mark.parametrize("options", [o for o in OPTIONS if {"balance", "router_z_loss"} & o.keys()], ids=str)
def test_loss_of_a_batch_is_a_function_of_the_means_of_its_parts(options: dict[str, Any]) -> None:
    network = small_network(n_banks=3, aux_weight=0.5, **options)
    idx, _ = batch(4)
    whole = network(idx)
    halves = [network.auxiliary_means(network(part)) for part in idx.chunk(2)]
    if halves[0] is None:
        assert whole.aux_loss == 0
        return
    loss = network.auxiliary_losses((halves[0] + halves[1]) / 2)
    assert relative_error(loss, whole.aux_loss) <= tolerances.OUTPUT
    assert relative_error(whole.aux_loss, 0.5 * sum(d.aux_loss for d in whole.routing)) <= tolerances.OUTPUT
    parameters = [block.router.weight for block in network.tilelli_blocks]
    gradients, expected = (torch.autograd.grad(x, parameters) for x in (loss, whole.aux_loss))
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert relative_error(gradient, wanted) <= tolerances.GRADIENT


def bias_network(**options: Any) -> TilelliLM:
    return small_network(**{"n_banks": 3, "balance": "bias"} | options)


def test_bias_moves_against_the_load_of_the_whole_step() -> None:
    network = bias_network()
    parts = batch(4)[0].chunk(2)
    loads = [torch.zeros(5, 3, dtype=torch.int64) for _ in range(2)]
    for idx in parts:  # two micro-batches of one step
        for load, decided in zip(loads, network(idx).routing, strict=True):
            load += torch.nn.functional.one_hot(decided.bank_index, 3).sum((0, 1))
    for total, load in zip(network.step_sums(), loads, strict=True):
        assert torch.equal(total, load)
    network.after_optimizer_step(1)
    for bias, load in zip(network.running_state(), loads, strict=True):
        mean = load.double().mean(-1, keepdim=True)
        assert torch.equal(bias, (1e-3 * (mean - load).sign()).float())
        assert bias.any()
        assert not bias.requires_grad


def test_bias_stays_where_loads_are_even_or_nothing_was_counted() -> None:
    network = bias_network()
    network.after_optimizer_step(1)
    network.step_sums()[0].fill_(7)
    network.after_optimizer_step(2)
    assert not any(bias.any() for bias in network.running_state())


def test_evaluation_does_not_count() -> None:
    network = bias_network().eval()
    network(*batch())
    network.train()
    network.infer(batch()[0])
    network.tilelli_blocks[0].router_weights(torch.randn(1, 4, WIDTH))
    assert not any(total.any() for total in network.step_sums())


@pytest.mark.parametrize("training", [True, False])
def test_bias_steers_the_choice_and_nothing_else(training: bool) -> None:
    network = bias_network().train(training)
    block = network.tilelli_blocks[0]
    idx, _ = batch()
    before = network(idx).routing[0]
    block.router_bias[:, 2] = 2.0
    x = network.embed(idx)
    y, routing = block(x)
    assert routing.bank_index.eq(2).all()
    assert torch.equal(routing.pathway_weights, before.pathway_weights)
    assert torch.equal(routing.bank_probability, before.bank_probability)
    h, expected = block.norm(x), x
    for p, name in enumerate(block.pathway_names):
        output = getattr(block, name)(h, torch.full_like(idx, 2))
        expected = expected + routing.pathway_weights[..., p, None] * output
    assert relative_error(y, expected) <= tolerances.OUTPUT


def test_bias_chooses_among_the_banks_that_top_k_has_kept() -> None:
    network = bias_network(top_k_routing=4)
    block = network.tilelli_blocks[0]
    idx, _ = batch()
    h = block.norm(network.embed(idx))
    r = block.router(h).softmax(-1)
    kept = torch.zeros_like(r, dtype=torch.bool).scatter(-1, r.topk(4).indices, True).view(*idx.shape, 5, 3)
    block.router_bias[:, 1:] = 2.0
    routing = block._route(h)
    used = routing.pathway_weights > 0
    assert kept.gather(-1, routing.bank_index.unsqueeze(-1)).squeeze(-1)[used].all()
    prefers_others = kept[..., 1:].any(-1)
    assert routing.bank_index[prefers_others].gt(0).all()
    assert routing.bank_index[~used].eq(0).all()
    # A token that has dropped a pathway uses none of its banks.
    assert torch.equal(block.bank_count.sum(-1), used.sum((0, 1)))


def test_bias_is_saved_and_counts_are_not() -> None:
    network = bias_network()
    names = {name for name in network.state_dict() if "router_bias" in name or "count" in name}
    assert names == {"blocks.0.router_bias", "blocks.1.router_bias"}
    assert network.state_dict()["blocks.0.router_bias"].shape == (5, 3)
    assert small_network(n_banks=3).step_sums() == []
    assert small_network(n_banks=3).running_state() == []


def test_bias_evens_out_a_starved_bank() -> None:
    network = bias_network(n_layers=1)
    block = network.tilelli_blocks[0]
    idx, _ = batch(8)
    with torch.no_grad():
        block.norm.bias.fill_(1.0)
        block.router.weight.view(5, 3, WIDTH)[:, 0] += 0.02
    (count,) = network.step_sums()
    loads = []
    for step in range(200):
        with torch.no_grad():
            network(idx)
        loads.append(count.clone())
        network.after_optimizer_step(step)
        count.zero_()
    first, last = (load.amax(-1) / load.double().mean(-1) for load in (loads[0], loads[-1]))
    assert last.mean() < 0.75 * first.mean()
    assert (loads[-1] == 0).sum() <= (loads[0] == 0).sum()


def test_a_route_without_doubt_has_no_entropy() -> None:
    entropy = pathway_entropy(torch.tensor([1.0, 0, 0]))
    assert 0 < entropy < 1e-10  # of weights clamped at 1e-12


def test_measures_are_what_the_router_decided_before_top_k() -> None:
    network = small_network(n_banks=3, top_k_routing=4)
    idx, _ = batch()
    output = network(idx)
    measures = network.measures(output)
    entropy = network.tilelli_blocks[0].router_entropy(network.embed(idx)).mean()
    assert relative_error(measures["router_entropy"].values[0], entropy) <= tolerances.OUTPUT
    weights = output.routing[0].pathway_weights
    assert relative_error(measures["pathway_share"].values[0], weights.mean((0, 1))) <= tolerances.OUTPUT
    assert torch.equal(measures["bank_load"].values[0].sum(-1), (weights > 0).sum((0, 1)))
