"""The whole network against a loop over tokens, and what must hold of it."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from app.models.equilibrium import EquilibriumLM
from app.models.equilibrium.block import MultiHeadAttention
from tests.models.equilibrium_reference import DEFAULTS, Reference, shares
from tests.parity import relative_error

V, T, D, H, L = 7, 6, 8, 2, 3
LONGEST = 24
IMPROVED: dict[str, Any] = dict(
    statistics="lagged", standardize=True, soft="ordinal", shared_router=False, reprocess_context=True,
    quantile="histogram",
)  # fmt: skip
CAUSAL_BUDGET: dict[str, Any] = dict(enforce_budget=True, total_budget_ratio=1.6, budget_order="causal")
#: each away from its default, but for those of the adapter's own learning
CONSTANTS: dict[str, Any] = dict(
    signal_momentum=0.3, init_thresholds=(0.2, 0.7, 1.9), target_fractions=(2, 2, 3, 3), threshold_momentum=0.45,
    temperature=3.0, offset_scale=0.6, verifier_weights=(1.0, 0.1, 0.7), verifier_sharpness=1.5,
    diversity_target=0.3, diversity_weight=0.7, fraction_weight=0.4,
)  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "original": {},
    "plain residual": {"use_attention_residual": False, "n_branches": 3, "use_verifier": False},
    "neither plastic nor branches": {"use_plastic": False, "use_branches": False, "shared_router": False},
    "one branch": {"n_branches": 1, "total_budget_ratio": 1.2, "max_budget_per_token": 3},
    "improved": IMPROVED,
    "current improved": IMPROVED | {"statistics": "current"},
    "every constant": CONSTANTS | {"capacity_factor": 1.1},
    "every constant, improved": IMPROVED | CONSTANTS,
    "lagged, shared, sorted": {"statistics": "lagged", "soft": "ordinal"},
    "enforced": {"enforce_budget": True, "total_budget_ratio": 1.6, "reprocess_context": True},
    "enforced, tight": {"enforce_budget": True, "total_budget_ratio": 1.5, "standardize": True},
    "enforced, causal": IMPROVED | CAUSAL_BUDGET,
    "capacity": {"capacity_factor": 0.6, "reprocess_context": True},
}


#: the others run with the exhaustive tests
USUAL = ("original", "plain residual", "improved", "every constant", "enforced", "enforced, causal")


def small_network(seed: int = 3, **options: Any) -> EquilibriumLM:
    """Weights so large that routes differ and heads disagree; no warm-up unless asked for."""
    torch.manual_seed(seed)
    arguments: dict[str, Any] = {"dropout": 0.0, "plastic_hidden": 5, "warmup_steps": 1} | options
    network = EquilibriumLM(V, LONGEST, D, H, L, 12, **arguments).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
        for router in network.routing_decisions:  # made in single precision
            router.target_cdf.copy_(shares(router.fractions).cumsum(0)[:3])
    return network


def batch(seed: int, n_rows: int = 2, n_tokens: int = T) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, V, (n_rows, n_tokens + 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def finish_step(network: EquilibriumLM, step: int = 1) -> None:
    """What the training module does after the optimizer."""
    network.after_optimizer_step(step)
    for total in network.step_sums():
        total.zero_()


def assert_same(
    network: EquilibriumLM, reference: Reference, seed: int, n_tokens: int = T, with_gradients: bool = True
) -> set[int]:
    """Outputs, routes, budgets and every gradient; returns the routes that were taken."""
    idx, targets = batch(seed, n_tokens=n_tokens)
    output = network(idx, targets)
    expected = reference.forward(idx, targets, network.training)
    for name in ("logits", "loss", "aux_loss"):
        assert relative_error(getattr(output, name), expected[name]) <= 1e-9, name
    assert torch.equal(torch.stack([record.route for record in output.routing]), expected["routes"])
    assert torch.equal(torch.stack([record.budget for record in output.routing]), expected["budgets"])
    if not with_gradients:
        return set(expected["routes"].flatten().tolist())
    upstream = torch.randn(output.logits.shape, generator=torch.Generator().manual_seed(seed)).double()
    found = torch.autograd.grad(
        (output.logits * upstream).sum() + output.loss + 100 * output.aux_loss, list(network.parameters())
    )
    objective = (expected["logits"] * upstream).sum() + expected["loss"] + 100 * expected["aux_loss"]
    names = [name for name, _ in network.named_parameters()]
    wanted = torch.autograd.grad(objective, [reference.p[name] for name in names], allow_unused=True)
    for name, gradient, other in zip(names, found, wanted, strict=True):
        other = torch.zeros_like(gradient) if other is None else other
        assert relative_error(gradient, other) <= 1e-7, name
    return set(expected["routes"].flatten().tolist())


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, id=name, marks=() if name in USUAL else pytest.mark.stress)
        for name, options in CASES.items()
    ],
)
def test_network_equals_the_loop_over_tokens(options: dict[str, Any]) -> None:
    network = small_network(**options)
    reference = Reference(network.state_dict(), H, L, warmup_steps=1, **options)
    network.eval()
    assert_same(network, reference, seed=0, n_tokens=4, with_gradients=False)  # before anything has moved
    network.train()
    assert_same(network, reference, seed=1, n_tokens=4, with_gradients=False)  # warming up, if lagged
    # From where every route is taken.
    reference = Reference(moved(network).state_dict(), H, L, warmup_steps=1, **options)
    taken = set()
    for step in range(2):
        taken |= assert_same(network, reference, seed=step, with_gradients=step == 1)
        finish_step(network)
        reference.after_step()
    network.eval()
    taken |= assert_same(network, reference, seed=9, n_tokens=5)
    assert taken & {2, 3}, "no token was processed again or adapted"
    for layer, signal in enumerate(network.equilibrium_signals):
        torch.testing.assert_close(signal.running_mean, reference.mean[layer])
        torch.testing.assert_close(signal.running_var, reference.var[layer])
        assert int(signal.num_batches_tracked) == reference.tracked[layer]
    for router, theta in zip(network.routing_decisions, reference.theta, strict=True):
        torch.testing.assert_close(router.running_thresholds, theta)


def moved(network: EquilibriumLM, n_steps: int = 12) -> EquilibriumLM:
    """The same network after some batches of training without an optimizer."""
    network.train()
    with torch.no_grad():
        for step in range(n_steps):
            network(*batch(20 + step, n_rows=8))
            finish_step(network)
    return network


def outputs_of_two_endings(network: EquilibriumLM) -> tuple[Tensor, Tensor, int]:
    """Logits for texts that part after some tokens, from the same state."""
    cut = 8
    idx, _ = batch(5, n_rows=32, n_tokens=LONGEST)
    changed = idx.clone()
    changed[:, cut:] = (changed[:, cut:] + 1) % V
    twin = copy.deepcopy(network)
    return network(idx).logits.detach(), twin(changed).logits.detach(), cut


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("budget", [{}, CAUSAL_BUDGET], ids=["free", "enforced"])
def test_lagged_outputs_do_not_see_the_future(budget: dict[str, Any], training: bool) -> None:
    network = moved(small_network(**IMPROVED | budget)).train(training)
    before, after, cut = outputs_of_two_endings(network)
    assert relative_error(after[:, :cut], before[:, :cut]) <= 1e-12
    assert (before[:, cut:] != after[:, cut:]).any()


def test_current_statistics_leak_in_training_and_not_in_evaluation() -> None:
    network = moved(small_network())
    before, after, cut = outputs_of_two_endings(network.eval())
    assert relative_error(after[:, :cut], before[:, :cut]) <= 1e-12
    before, after, cut = outputs_of_two_endings(network.train())
    assert relative_error(after[:, :cut], before[:, :cut]) > 1e-4


@pytest.mark.parametrize(
    "options", [IMPROVED, {"reprocess_context": True}], ids=["improved", "original routing"]
)
def test_gathered_tokens_become_what_they_would_have_become(options: dict[str, Any]) -> None:
    # 1.5 T extra units do not bind; backward tokens get room for 0.75 T, plastic ones for 0.5 T.
    everywhere = moved(small_network(**options))
    gathered = small_network(**options, enforce_budget=True, total_budget_ratio=2.5)
    gathered.load_state_dict(everywhere.state_dict())
    idx, targets = batch(5, n_rows=6, n_tokens=LONGEST)
    found, expected = gathered(idx, targets), everywhere(idx, targets)
    routes = torch.stack([record.route for record in expected.routing])
    assert torch.equal(torch.stack([record.route for record in found.routing]), routes)
    assert set(routes.flatten().tolist()) == {0, 1, 2, 3}
    assert relative_error(found.logits, expected.logits) <= 1e-12
    upstream = torch.randn(found.logits.shape).double()
    gradients = [
        torch.autograd.grad((output.logits * upstream).sum() + output.aux_loss, list(network.parameters()))
        for output, network in ((found, gathered), (expected, everywhere))
    ]
    for (name, _), ours, theirs in zip(gathered.named_parameters(), *gradients, strict=True):
        assert relative_error(ours, theirs) <= 1e-10, name


@pytest.mark.parametrize("ratio", [1.0, 1.3, 1.6])
def test_every_parameter_takes_part_whatever_there_is_room_for(ratio: float) -> None:
    network = moved(small_network(**IMPROVED, enforce_budget=True, total_budget_ratio=ratio))
    total_loss(network, *batch(5)).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_a_dropping_capacity_says_how_many_it_dropped() -> None:
    idx, targets = batch(5, n_rows=32, n_tokens=LONGEST)
    roomy = moved(small_network(shared_router=False))
    dropping = small_network(shared_router=False, capacity_factor=0.3)
    dropping.load_state_dict(roomy.state_dict())
    dropped, kept = dropping(idx, targets).routing[0], roomy(idx, targets).routing[0]
    lost = [int((kept.route == route).sum() - (dropped.route == route).sum()) for route in (1, 2, 3)]
    assert dropped.overflow.tolist() == lost
    # One plastic token a row; the first layer does nothing with backward tokens, nor with branch tokens.
    assert (dropped.route == 3).sum(-1).max() == 1
    assert lost[:2] == [0, 0]
    assert lost[2] > 0
    assert dropping.measures(dropping(idx, targets))["overflow"].values.sum() > 0


@pytest.mark.parametrize(
    ("options", "whole"),
    [
        pytest.param(IMPROVED, False, id="lagged, blocks"),
        pytest.param(IMPROVED, True, id="lagged, everything"),
        pytest.param({"shared_router": False}, False, id="current, blocks"),
        pytest.param({"shared_router": False}, True, id="current, everything"),
        # Not as a whole: an earlier layer, computed again, would meet the thresholds that the last one has moved.
        pytest.param({}, False, id="original, blocks"),
    ],
)
def test_activation_checkpointing_moves_statistics_once(options: dict[str, Any], whole: bool) -> None:
    plain, saving = moved(small_network(**options)), moved(small_network(**options))
    saving.activation_checkpointing = not whole
    idx, targets = batch(5)
    total_loss(plain, idx, targets).backward()
    if whole:
        checkpoint(total_loss, saving, idx, targets, use_reentrant=False).backward()
    else:
        total_loss(saving, idx, targets).backward()
    for network in (plain, saving):
        finish_step(network)
    for ours, theirs in zip(saving.running_state(), plain.running_state(), strict=True):
        assert torch.equal(ours, theirs)
    for (name, ours), theirs in zip(saving.named_parameters(), plain.parameters(), strict=True):
        assert relative_error(ours.grad, theirs.grad) <= 1e-12, name


def total_loss(network: EquilibriumLM, idx: Tensor, targets: Tensor) -> Tensor:
    output = network(idx, targets)
    assert output.loss is not None
    return output.loss + output.aux_loss


@pytest.mark.parametrize("quantile", ["histogram", "sort"])
def test_one_large_batch_moves_what_two_halves_move(quantile: str) -> None:
    options = IMPROVED | {"quantile": quantile}
    one, two = moved(small_network(**options)), moved(small_network(**options))
    idx, targets = batch(5, n_rows=8)
    one(idx, targets)
    for half in (slice(0, 4), slice(4, 8)):
        two(idx[half], targets[half])
    finish_step(one)
    finish_step(two)
    for ours, theirs in zip(one.equilibrium_signals, two.equilibrium_signals, strict=True):
        for mine, other in zip(ours.running_state(), theirs.running_state(), strict=True):
            torch.testing.assert_close(mine, other)
    for ours, theirs in zip(one.routing_decisions, two.routing_decisions, strict=True):
        assert int(ours.num_batches_tracked) == int(theirs.num_batches_tracked) == 13
        # Histograms are the whole step's; sorted quantiles are averaged over its micro-batches.
        same = torch.equal(ours.running_thresholds, theirs.running_thresholds)
        assert same == (quantile == "histogram")


def test_lagged_statistics_stand_still_in_evaluation() -> None:
    network = moved(small_network(**IMPROVED)).eval()
    before = [state.clone() for state in network.running_state()]
    network(*batch(5))
    finish_step(network)
    assert all(torch.equal(a, b) for a, b in zip(before, network.running_state(), strict=True))


def test_an_optimizer_step_of_one_token_moves_nothing() -> None:
    network = moved(small_network(**IMPROVED))
    before = [state.clone() for state in network.running_state()]
    network(*batch(5, n_rows=1, n_tokens=1))
    finish_step(network)
    assert all(torch.equal(a, b) for a, b in zip(before, network.running_state(), strict=True))
    network(*batch(5, n_rows=1, n_tokens=2))
    finish_step(network)
    assert all(not torch.equal(a, b) for a, b in zip(before, network.running_state(), strict=True))


@pytest.mark.parametrize("enforced", [True, False], ids=["enforced", "estimated"])
def test_a_layer_reports_what_it_decided(enforced: bool) -> None:
    ratio = 1.4 if enforced else 1.7
    network = moved(small_network(**IMPROVED, enforce_budget=enforced, total_budget_ratio=ratio)).eval()
    with torch.no_grad():
        for router in network.routing_decisions:
            router.threshold_offsets.copy_(torch.tensor([2.0, -0.5, 0.3]))
    output = network(batch(5, n_rows=8, n_tokens=LONGEST)[0])
    measures = network.measures(output)
    n_rows, capped = [], []
    for layer, (record, router) in enumerate(zip(output.routing, network.routing_decisions, strict=True)):
        thresholds = [float(theta) for theta in (router.theta1, router.theta2, router.theta3)]
        assert record.thresholds.tolist() == thresholds == measures["threshold"].values[layer].tolist()
        shift = 0.2 * router.threshold_offsets.detach().tanh()
        torch.testing.assert_close(measures["threshold_offset"].values[layer], shift)
        signal = network.equilibrium_signals[layer]
        torch.testing.assert_close(record.mean_deviation, record.deviation.mean())
        assert torch.equal(measures["deviation"].values[layer], record.mean_deviation)
        assert (record.deviation > 0).all()  # as it is; what is routed on has mean zero
        score = signal.standardized(record.deviation)
        wanted = (score.unsqueeze(-1) > record.thresholds).sum(-1)
        if enforced:
            met = (wanted != record.route).any(-1)
        else:
            assert torch.equal(wanted, record.route)
            p = router(score).probabilities
            asked = (p * torch.arange(1, 5)).sum(-1).sum(-1)
            met = asked > math.floor(LONGEST * ratio)
        assert torch.equal(record.capped, met)
        n_rows.append([int((~met).sum()), int(met.sum())])
        capped.append(met)
    together = torch.stack(capped)
    assert together.any()
    assert not together.all()
    assert measures["rows"].values.tolist() == n_rows
    assert [axis.labels for axis in measures["rows"].axes if axis.name == "cap"] == [("below", "hit")]


def test_a_route_too_dear_for_one_token_meets_no_cap() -> None:
    network = moved(small_network(enforce_budget=True, total_budget_ratio=4.0, max_budget_per_token=2)).eval()
    output = network(batch(5, n_rows=8, n_tokens=LONGEST)[0])
    deviations = torch.stack([record.deviation for record in output.routing])
    assert (deviations > network.routing_decisions[0].theta2).any()
    assert all(record.route.max() <= 1 for record in output.routing)
    assert not any(record.capped.any() for record in output.routing)


def test_dropout_is_on_the_embedding() -> None:
    network = small_network(dropout=0.5)
    entering: list[Tensor] = []
    network.blocks[0].register_forward_pre_hook(lambda block, inputs: entering.append(inputs[0].detach()))
    idx, _ = batch(5, n_rows=8)
    seen = []
    for training in (True, False):
        entering.clear()
        network.train(training)(idx)
        seen.append(entering[0])  # the block is called again for tokens that come back
    embedded = network.tok_emb(idx) + network.pos_emb(torch.arange(T))
    kept = seen[0] != 0
    assert 0.4 < float(kept.double().mean()) < 0.6
    torch.testing.assert_close(seen[0], torch.where(kept, 2 * embedded, 0.0))
    assert torch.equal(seen[1], embedded)


def test_dropout_is_on_the_attention_of_a_token_that_is_processed_alone() -> None:
    torch.manual_seed(0)
    attention = MultiHeadAttention(D, H, dropout=0.5).double()
    torch.nn.init.eye_(attention.o_proj.weight)
    x = torch.randn(4, 50, D, dtype=torch.float64)
    value = attention.v_proj(x)
    # A head's one weight is dropped as a whole.
    weight = (attention.alone(x) / value).detach().unflatten(-1, (H, D // H))
    kept = (weight[..., :1] > 1).expand_as(weight)
    torch.testing.assert_close(weight, 2 * kept.double())
    assert 0.4 < float(kept.double().mean()) < 0.6
    torch.testing.assert_close(attention.eval().alone(x), value)


def test_original_arguments_are_the_defaults() -> None:
    network = EquilibriumLM(V)
    assert network._init_args == {
        "vocab_size": V, "block_size": 512, "d_model": 256, "n_heads": 4, "n_layers": 6, "d_ff": 512, "dropout": 0.1,
        "plastic_hidden": 64, "activation_checkpointing": False, "route_choice": "deviation", **DEFAULTS,
    }  # fmt: skip


def test_arguments_out_of_range_are_named_together() -> None:
    with pytest.raises(ValueError, match="must") as error:
        EquilibriumLM(
            V, n_heads=3, dropout=1.0, total_budget_ratio=0.9, enforce_budget=True, capacity_factor=0.0,
            statistics="late", n_branches=0, warmup_steps=-1,
        )  # fmt: skip
    named = {line.split(" = ")[0] for line in str(error.value).splitlines()}
    assert named == {
        "n_heads", "dropout", "total_budget_ratio", "capacity_factor", "statistics", "n_branches", "warmup_steps",
    }  # fmt: skip
    with pytest.raises(ValueError, match="must") as error:
        EquilibriumLM(
            V, signal_momentum=0.0, threshold_momentum=1.5, temperature=0.0, offset_scale=-1.0, verifier_sharpness=-1.0,
            diversity_target=0.7, diversity_weight=-1.0, fraction_weight=math.inf, plastic_rate=0.0, plastic_mask=1.5,
            plastic_noise=-1.0, plastic_penalty=math.nan, plastic_decay=1.1, init_thresholds=(1.0, 1.0, 2.0),
            target_fractions=(0.0, 0.0, 0.0, 0.0), verifier_weights=(1.0, -1.0, 1.0),
        )  # fmt: skip
    lines = str(error.value).splitlines()
    constants = {name for name in DEFAULTS if name.startswith("plastic_")} | CONSTANTS.keys()
    assert [line.split(" = ")[0] for line in lines if ": must" in line] == [
        line.split(" = ")[0] for line in lines
    ]
    assert {line.split(" = ")[0] for line in lines} == constants
    for name, value in (
        ("target_fractions", (0.5, 0.5)),
        ("init_thresholds", (1, 2)),
        ("verifier_weights", (1,)),
    ):
        with pytest.raises(ValueError, match=f"^{name} = .*must be (three|four)"):
            EquilibriumLM(V, **{name: value})
    with pytest.raises(ValueError, match="block_size"):
        small_network()(batch(1, n_tokens=LONGEST + 1)[0])


def test_routing_learns_at_a_tenth_of_the_rate() -> None:
    network = EquilibriumLM(V, T, D, H, L, 12, shared_router=False)
    groups = {group["name"]: group for group in network.parameter_groups()}
    names = {id(p): name for name, p in network.named_parameters()}
    slow = [names[id(p)] for p in groups["routing"]["params"]]
    assert slow == [f"routers.{i}.threshold_offsets" for i in range(L)]
    assert groups["routing"]["rate"] == 0.1
    assert "branches.offsets" in {names[id(p)] for p in groups["vectors"]["params"]}
    assert "branches.heads" in {names[id(p)] for p in groups["matrices"]["params"]}
    assert sum(len(group["params"]) for group in groups.values()) == len(names)


@pytest.mark.parametrize("options", [{}, IMPROVED, CAUSAL_BUDGET], ids=["original", "improved", "enforced"])
def test_a_training_step_never_waits_for_a_value(options: dict[str, Any]) -> None:
    network = small_network(**options)
    idx, targets = batch(5, n_rows=32)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        total_loss(network, idx, targets).backward()
        finish_step(network)
    names = {event.key for event in profile.key_averages()}
    assert "aten::embedding" in names
    assert not names & {"aten::_local_scalar_dense", "aten::nonzero", "aten::item", "aten::is_nonzero"}


def test_stated_flops_are_those_of_the_products() -> None:
    # Without routes that are computed for everybody and paid for by some.
    network = EquilibriumLM(V, T, D, H, 1, 12, use_plastic=False).eval()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, T, dtype=torch.int64))
    masked_half = 2 * 2 * D * (T - (T + 1) / 2)
    shifts = 2 * 2 * V * D / T  # of the branch heads, made once and not per token
    assert network.flops_per_token(T) == pytest.approx(
        3 * (counter.get_total_flops() / T - masked_half - shifts)
    )
    assert network.flops_per_token(2 * T) > network.flops_per_token(T)
