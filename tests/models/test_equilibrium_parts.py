"""Signal, routing, budget, branches and adapter beyond the recorded cases."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from app.models.equilibrium import (
    BranchHeads,
    EquilibriumSignal,
    PlasticAdapter,
    RoutingDecision,
    TokenEnergyBudget,
    Verifier,
)
from app.models.equilibrium.statistics import global_quantiles
from app.ops.histogram import histogram, histogram_quantiles
from tests.parity import relative_error

TARGET = torch.tensor([0.55, 0.25, 0.15, 0.05])


def test_a_single_token_moves_nothing() -> None:
    signal = EquilibriumSignal(4, standardize=True)
    before = [state.clone() for state in signal.running_state()]
    signal(torch.randn(1, 1, 4))
    assert all(torch.equal(a, b) for a, b in zip(before, signal.running_state(), strict=True))
    signal(torch.randn(1, 2, 4))
    assert int(signal.num_batches_tracked) == 1


def test_standardized_deviation_has_mean_zero_and_spread_one() -> None:
    torch.manual_seed(0)
    signal = EquilibriumSignal(64, standardize=True, warmup_steps=3)
    x = torch.randn(8, 64, 64) * 3 + 1
    for _ in range(100):
        deviation = signal(x).deviation
    score = signal.standardized(deviation)
    assert abs(float(score.mean())) < 0.01
    assert float(score.std()) == pytest.approx(1, abs=0.01)
    assert EquilibriumSignal(64).standardized(deviation) is deviation


def test_centres_tell_tokens_apart_only_in_standardized_units() -> None:
    x = torch.randn(32, 64, 256, generator=torch.Generator().manual_seed(0))
    raw, signal = (
        RoutingDecision(threshold_momentum=1.0),
        EquilibriumSignal(256, momentum=1.0, standardize=True),
    )
    deviation = signal(x).deviation
    assert float(deviation.std()) == pytest.approx(1 / 512**0.5, rel=0.05)
    nearly_uniform = raw(deviation).probabilities.mean((0, 1))
    assert nearly_uniform.tolist() == pytest.approx((0.30, 0.29, 0.25, 0.17), abs=0.01)
    scaled = RoutingDecision(threshold_momentum=1.0)(signal.standardized(deviation))
    assert (scaled.probabilities.mean((0, 1)) - TARGET).abs().max() < 0.1


def test_an_empty_input_leaves_the_thresholds() -> None:
    router = RoutingDecision()
    for mode in (True, False):
        output = router.train(mode)(torch.zeros(2, 0))
        assert output.route.shape == (2, 0)
        assert output.probabilities.shape == (2, 0, 4)
        assert torch.equal(output.thresholds, torch.tensor([0.75, 1.0, 1.35]))
    assert int(router.num_batches_tracked) == 0


def test_thresholds_are_read_in_order() -> None:
    router = RoutingDecision(init_thresholds=(1.0, 0.5, 0.4))
    found = [float(theta) for theta in (router.theta1, router.theta2, router.theta3)]
    assert found == pytest.approx([1.0, 1.001, 1.002])
    with pytest.raises(AttributeError):
        router.theta1 = torch.ones(())  # type: ignore[misc]


@pytest.mark.parametrize(
    ("distribution", "expected", "tolerance"),
    [("gaussian", (0.548, 0.246, 0.152, 0.054), 2e-3), ("lognormal", (0.542, 0.251, 0.154, 0.052), 1e-2)],
)
def test_ordinal_probabilities_agree_with_the_hard_routes(
    distribution: str, expected: tuple[float, ...], tolerance: float
) -> None:
    deviation = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
    if distribution == "lognormal":
        deviation = (0.5 * deviation).exp()
        deviation = (deviation - deviation.mean()) / deviation.std()
    output = RoutingDecision(threshold_momentum=1.0, soft="ordinal")(deviation)
    hard = (output.route.unsqueeze(-1) == torch.arange(4)).float().mean((0, 1))
    assert torch.allclose(hard, TARGET, atol=1e-3)
    assert output.probabilities.mean((0, 1)).tolist() == pytest.approx(expected, abs=tolerance)
    assert torch.allclose(output.probabilities.sum(-1), torch.ones(()))
    assert (output.probabilities >= 0).all()


@pytest.mark.parametrize("n", [1, 2, 3, 17, 5000])
@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_a_histogram_is_at_most_one_bin_off(n: int, scale: float) -> None:
    levels = TARGET.cumsum(0)[:3]
    for seed in range(20):
        values = torch.randn(3, n, generator=torch.Generator().manual_seed(seed)) * scale
        # Far apart, so that a quantile lies between two bins with nothing in between.
        values[:, ::3] += 3
        found = histogram_quantiles(levels, histogram(values, -8, 8), -8, 8)
        exact = torch.stack([torch.quantile(row.double(), levels.double()) for row in values])
        assert (found - exact).abs().max() <= 16 / 4096
        sorted_ones = torch.stack([global_quantiles(row, levels) for row in values])
        assert (sorted_ones - exact).abs().max() <= 1e-5


def test_outer_bins_are_open() -> None:
    counts = histogram(torch.tensor([[-3.0, 5.0, 1e30, float("inf")]]), 0.0, 4.0)
    assert counts[0, 0] == 1
    assert counts[0, -1] == 3
    assert histogram_quantiles(TARGET[:3], torch.zeros(2, 4096, dtype=torch.int64), 0, 4).isfinite().all()


def scan(route: list[int], deviation: list[float], ratio: float, order: str) -> list[int]:
    """Token by token, as described."""
    n_tokens = len(route)
    granted = [0] * n_tokens
    if order == "causal":
        spent = 0
        for t in range(n_tokens):
            if spent + route[t] + 1 <= math.floor((t + 1) * ratio):
                granted[t] = route[t]
            spent += granted[t] + 1
        return granted
    left = math.floor(n_tokens * ratio) - n_tokens
    for t in sorted(range(n_tokens), key=lambda t: -deviation[t]):
        if route[t] <= left:
            granted[t] = route[t]
            left -= route[t]
    return granted


@pytest.mark.parametrize("order", ["deviation", "causal"])
@pytest.mark.parametrize("ratio", [1.6, 1.3, 1.0, 2.0])
def test_units_stay_within_the_budget(ratio: float, order: Any) -> None:
    for seed, n_tokens in enumerate([1, 2, 3, 5, 8, 13, 31, 64, 100]):
        generator = torch.Generator().manual_seed(seed)
        # Rounded, so that some are equal and come in order of position.
        deviation = (torch.randn(6, n_tokens, generator=generator) * 8).round() / 8
        thresholds = torch.tensor([-0.5, 0.3, 1.0]) if seed % 2 else torch.tensor([0.1, 0.8, 1.6])
        route = (deviation.unsqueeze(-1) > thresholds).sum(-1)
        granted = TokenEnergyBudget(4, ratio).granted(route, deviation, order)
        expected = [scan(r, d, ratio, order) for r, d in zip(route.tolist(), deviation.tolist(), strict=True)]
        assert granted.tolist() == expected
        spent = (granted + 1).cumsum(-1)
        assert (spent[:, -1] <= math.floor(n_tokens * ratio)).all()
        if order == "causal":
            allowed = torch.tensor([math.floor((t + 1) * ratio) for t in range(n_tokens)])
            assert (spent <= allowed).all()


def test_a_route_dearer_than_a_token_may_be_is_not_granted() -> None:
    route, deviation = torch.tensor([[3, 1, 2, 0]]), torch.tensor([[4.0, 2.0, 3.0, 1.0]])
    assert TokenEnergyBudget(3, 4.0).granted(route, deviation).tolist() == [[0, 1, 2, 0]]


def test_a_total_counts_as_met_only_where_it_refused_somebody() -> None:
    route, deviation = torch.tensor([[3, 1, 2, 0]]), torch.tensor([[4.0, 2.0, 3.0, 1.0]])
    roomy, tight = TokenEnergyBudget(3, 4.0), TokenEnergyBudget(4, 1.5)
    assert roomy.affordable(route).tolist() == [[0, 1, 2, 0]]
    assert torch.equal(roomy.granted(route, deviation), roomy.affordable(route))
    assert not torch.equal(tight.granted(route, deviation), tight.affordable(route))
    # Of an estimate: tokens that ask for 1 and for 3 units, where a row of two has 3.
    probabilities = torch.eye(4)[torch.tensor([[0, 0], [0, 2], [2, 2]])]
    assert TokenEnergyBudget(4, 1.5).rows_at_cap(probabilities).tolist() == [False, True, True]
    assert TokenEnergyBudget(4, 3.5).rows_at_cap(probabilities).tolist() == [False, False, False]


def test_a_single_branch_is_itself() -> None:
    heads = BranchHeads(6, 5, n_branches=1)
    hidden = torch.randn(2, 3, 6)
    logits, diversity = heads(hidden)
    assert relative_error(logits[0], (hidden + heads.offsets[0]) @ heads.heads[0].T) <= 1e-5
    assert float(diversity) == 0
    judged = Verifier()(logits)
    assert torch.allclose(judged.logits, logits[0])
    assert torch.equal(judged.confidence, torch.ones(2, 3))


def test_temperatures_run_from_cool_to_warm() -> None:
    heads = BranchHeads(6, 5, n_branches=3)
    hidden = torch.randn(2, 3, 6)
    logits, _ = heads(hidden)
    for i, temperature in enumerate([0.8, 1.0, 1.2]):
        expected = (hidden + heads.offsets[i]) @ heads.heads[i].T / temperature
        assert relative_error(logits[i], expected) <= 1e-5


def adapted_by_hand(adapter: PlasticAdapter, start: list[Tensor], h: Tensor, seed: int) -> list[Tensor]:
    """One step of the description, from the state of an adapter."""
    generator = torch.Generator().manual_seed(seed)
    zeroed = torch.rand(h.shape[:-1], generator=generator) < 0.15
    c = h.clone()
    c[zeroed] = 0
    c = c + 0.05 * torch.randn(h.shape, generator=generator)
    parameters = [p.detach().clone().requires_grad_() for p in adapter.parameters()]
    w1, b1, w2, b2 = parameters
    restored = c + (torch.nn.functional.gelu(c @ w1.T + b1) @ w2.T + b2)
    penalty = sum(((p - p0) ** 2).mean() for p, p0 in zip(parameters, start, strict=True))
    objective = ((restored - h) ** 2).mean() + 0.01 * penalty
    gradients = torch.autograd.grad(objective, parameters)
    return [p.detach() - 1e-4 * g for p, g in zip(parameters, gradients, strict=True)]


def test_adaptation_makes_the_described_steps_and_finds_its_way_back() -> None:
    torch.manual_seed(0)
    adapter = PlasticAdapter(6, hidden=5)
    start = [p.detach().clone() for p in adapter.parameters()]
    h = 30 * torch.randn(40, 6)
    random_state = torch.get_rng_state()
    for seed in range(3):
        expected = adapted_by_hand(adapter, start, h, seed)
        with torch.inference_mode():
            adapter.adapt(h, torch.Generator().manual_seed(seed))
        for p, wanted in zip(adapter.parameters(), expected, strict=True):
            torch.testing.assert_close(p.detach(), wanted)
        moved = [p.detach().clone() for p in adapter.parameters()]
        adapter.decay()
        for p, before, p0 in zip(adapter.parameters(), moved, start, strict=True):
            torch.testing.assert_close(p.detach(), 0.99 * before + 0.01 * p0)
    assert torch.equal(random_state, torch.get_rng_state())
    assert not torch.equal(adapter.up.weight, start[2])
    assert set(adapter.state_dict()) == {"down.weight", "down.bias", "up.weight", "up.bias"}
    assert all(p.grad is None for p in adapter.parameters())
    adapter.reset()
    assert all(torch.equal(p, p0) for p, p0 in zip(adapter.parameters(), start, strict=True))


def test_what_is_loaded_is_what_adaptation_comes_back_to() -> None:
    adapter, other = PlasticAdapter(6, hidden=5), PlasticAdapter(6, hidden=5)
    adapter.adapt(torch.randn(4, 6))
    torch.nn.Sequential(adapter).load_state_dict(torch.nn.Sequential(other).state_dict())
    adapter.adapt(torch.randn(4, 6))
    adapter.reset()
    assert all(torch.equal(p, q) for p, q in zip(adapter.parameters(), other.parameters(), strict=True))


def test_adaptation_to_no_token_is_no_step() -> None:
    adapter = PlasticAdapter(6, hidden=5)
    before = [p.detach().clone() for p in adapter.parameters()]
    adapter.adapt(torch.zeros(0, 6))
    assert all(torch.equal(p, q) for p, q in zip(adapter.parameters(), before, strict=True))


def test_trained_weights_come_back_over_weights_that_are_no_numbers() -> None:
    adapter = PlasticAdapter(6, hidden=5)
    before = [p.detach().clone() for p in adapter.parameters()]
    adapter.adapt(torch.full((3, 6), float("nan")))
    assert not adapter.up.weight.isfinite().any()
    adapter.reset()
    assert all(torch.equal(p, q) for p, q in zip(adapter.parameters(), before, strict=True))


def test_adaptation_is_exact_under_autocast() -> None:
    torch.manual_seed(0)
    plain = PlasticAdapter(6, hidden=5)
    other = copy.deepcopy(plain)
    h = 30 * torch.randn(40, 6)
    plain.adapt(h, torch.Generator().manual_seed(1))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        other(h)  # leaves rounded weights in the cache of autocast
        other.adapt(h, torch.Generator().manual_seed(1))
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), other.parameters(), strict=True))


def test_a_signal_says_whether_it_is_warming_up() -> None:
    signal = EquilibriumSignal(4, warmup_steps=2)
    x = torch.randn(2, 3, 4)
    seen = [bool(signal.is_warming_up)]
    for _ in range(3):
        output = signal(x)
        assert torch.equal(output.warming_up, signal.is_warming_up)
        seen.append(bool(signal.is_warming_up))
    assert seen == [True, True, False, False]
    assert (signal.is_warming_up.shape, signal.is_warming_up.dtype) == ((), torch.bool)
    with pytest.raises(AttributeError):
        signal.is_warming_up = True


def test_temperatures_of_the_branches_are_exact_whatever_the_heads_read() -> None:
    heads = BranchHeads(6, 5)
    with torch.no_grad():
        heads.heads.fill_(0.25)
        heads.offsets.zero_()
    with torch.autocast("cpu", torch.bfloat16):
        logits = heads.logits(torch.ones(1, 1, 6, dtype=torch.bfloat16))
    torch.testing.assert_close(logits[:, 0, 0, 0], torch.tensor([1.5 / 0.8, 1.5 / 1.2]))
