"""Where nothing is left of a token, a row, a weight or a batch, gradients stay finite, and of an ordinary size."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.models import LanguageModel
from app.models.crystal import CrystalGPT
from app.models.equilibrium import EquilibriumLM, EquilibriumSignal, PlasticAdapter, Verifier
from app.models.feedback import aligned, probes
from app.models.gpt import GPT
from app.models.language_model import next_token_loss
from app.models.layers import LayerNorm
from app.models.local_gpt import LayerNormSTE, LayerNormSurrogate, LocalGPT, VQResidualDirection
from app.models.tilelli import TilelliLM
from app.models.tilelli.routing import gumbel_like, pathway_entropy
from app.ops.crystal_attention.modes import orthonormal
from app.ops.ternary import learned_step_ternary, ternary

V, D, T, L = 11, 32, 24, 12
SHIPPED: dict[str, Any] = dict(
    statistics="lagged",
    standardize=True,
    soft="ordinal",
    shared_router=False,
    reprocess_context=True,
    quantile="histogram",
)


def equilibrium(**options: Any) -> Callable[[float], LanguageModel]:
    sizes: dict[str, Any] = dict(d_model=D, n_heads=2, n_layers=L, d_ff=2 * D, warmup_steps=0)
    return lambda dropout: EquilibriumLM(V, T, **sizes, dropout=dropout, **options)


def tilelli(**options: Any) -> Callable[[float], LanguageModel]:
    return lambda dropout: TilelliLM(V, d_model=D, n_layers=L, dropout=dropout, d_head=8, **options)


def local(**options: Any) -> Callable[[float], LanguageModel]:
    sizes: dict[str, Any] = dict(block_size=T, vocab_size=V, n_layers=L, n_heads=2, d_model=D)
    return lambda dropout: LocalGPT(**sizes, dropout=dropout, **options)


NETWORKS: dict[str, Callable[[float], LanguageModel]] = {
    "equilibrium": equilibrium(),
    "equilibrium without residuals over depth": equilibrium(use_attention_residual=False),
    "equilibrium as shipped": equilibrium(**SHIPPED),
    "gpt": lambda dropout: GPT(V, T, L, 2, D, dropout=dropout),
    "crystal": lambda dropout: CrystalGPT(V, T, L, 2, D, dropout=dropout),
    "crystal that learns": lambda dropout: CrystalGPT(
        V, T, L, 2, D, dropout=dropout, learn_basis=True, rank=3
    ),
    "tilelli": tilelli(n_banks=2),
    "tilelli with everything learned": tilelli(lsq=True, path_norm=True, balance="switch", router_noise=1.0),
    "tilelli with one entry": tilelli(n_banks=2, top_k_routing=1, bank_gate="bank", balance="switch"),
    "local softmax": local(attn_mode="softmax"),
    "local fa": local(method="fa", ln_mode="center_scale", vq_codes=4),
    "local dfa": local(method="dfa", mlp_topk=1, resid_topk=1),
}


def norm(network: LanguageModel, idx: Tensor) -> float:
    """Of all gradients of a training step."""
    output = network(idx, idx.roll(-1, 1))
    (output.loss + output.aux_loss).backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return float(nn.utils.get_total_norm(gradients))


@pytest.mark.parametrize("dropout", [0.95, 0.99, 1 - 1e-6])
@pytest.mark.parametrize("name", NETWORKS)
def test_tokens_of_which_dropout_leaves_nothing(name: str, dropout: float) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name](dropout)
    assert norm(network, torch.randint(0, V, (4, T))) < 1e4  # beyond 1e19 with PyTorch's own norms, or NaN


@pytest.mark.parametrize("name", NETWORKS)
def test_one_token_equal_tokens_and_no_weights(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name](0.0)
    assert norm(network, torch.zeros(1, 1, dtype=torch.int64)) < 1e4
    assert norm(network, torch.full((2, T), 3)) < 1e4
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert norm(network, torch.randint(0, V, (2, T))) < 1e4
    assert norm(network, torch.zeros(1, 1, dtype=torch.int64)) < 1e4


# -- norms ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
def test_a_layer_norm_is_pytorchs_but_for_constant_rows(dtype: torch.dtype, autocast: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = LayerNorm(12).to(dtype), nn.LayerNorm(12).to(dtype)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        p.data.normal_()
        q.data.copy_(p)
    x = torch.randn(2, 5, 12).to(dtype)
    x[0, 1], x[1, 3], x[1, 4] = 0.0, 1.5, torch.randn(12) * 3e-3
    upstream = torch.randn(2, 5, 12).to(dtype)
    found = []
    for layer in (ours, theirs):
        own = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = layer(own)
        y.backward(upstream)
        found.append([y, own.grad, layer.weight.grad, layer.bias.grad])
    is_constant = (x == x[..., :1]).all(-1)
    assert is_constant.sum() == 2
    assert not found[0][1][is_constant].any()
    found[1][1][is_constant] = 0.0
    assert all(torch.equal(p, q) for p, q in zip(*found, strict=True))


def test_what_a_layer_norm_multiplies_by_at_a_constant_row() -> None:
    x = torch.zeros(1, 8, requires_grad=True)
    F.layer_norm(x, (8,)).backward(torch.eye(1, 8))
    assert x.grad is not None
    assert x.grad.abs().max() > 200  # the slope of the guard


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_with_a_backward_pass_of_their_own(dtype: torch.dtype) -> None:
    for make in (
        LayerNormSTE,
        *(lambda D, m=m: LayerNormSurrogate(m, D) for m in ("projected", "center_scale")),
    ):
        for value in (0.0, 1.5):
            x = torch.full((2, 3, 8), value, dtype=dtype, requires_grad=True)
            make(8).to(dtype)(x).square().sum().backward()
            assert x.grad is not None
            assert not x.grad.any()


# -- parts ----------------------------------------------------------------------------------------------


def finite(*tensors: Tensor | None) -> bool:
    return all(x is not None and bool(torch.isfinite(x).all()) for x in tensors)


def test_a_signal_at_its_own_mean_and_without_variance() -> None:
    signal = EquilibriumSignal(4, momentum=1.0)
    for rows in (torch.zeros(2, 3, 4), torch.ones(2, 3, 4), torch.eye(4)[:, None]):
        x = rows.clone().requires_grad_()
        output = signal(x)
        output.deviation.sum().backward()
        assert finite(output.deviation, x.grad)
    assert finite(*signal.buffers())


def test_a_verifier_of_certain_equal_and_single_branches() -> None:
    certain = torch.full((2, 1, 3, 5), -1e4)
    certain[..., 0] = 1e4
    for logits in (certain, torch.zeros(2, 1, 3, 5), torch.zeros(1, 1, 1, 1)):
        x = logits.clone().requires_grad_()
        decided = Verifier()(x)
        (decided.logits.sum() + decided.confidence.sum()).backward()
        assert finite(decided.logits, decided.weights, x.grad)


def test_an_adapter_of_nothing_and_of_zeros() -> None:
    adapter = PlasticAdapter(4, 3)
    for h in (torch.zeros(0, 4), torch.zeros(3, 4), torch.eye(4)):
        assert finite(adapter.adapt(h), *adapter.parameters())
        adapter.decay()


def test_a_loss_over_no_target_and_its_mean_over_some() -> None:
    logits = torch.randn(2, 3, V, requires_grad=True)
    targets = torch.tensor([[1, -100, 2], [-100, 4, -100]])
    for each in (targets, torch.full_like(targets, -100)):
        loss = next_token_loss(logits, each)
        assert loss is not None
        (gradient,) = torch.autograd.grad(loss, logits)
        assert finite(loss, gradient)
        assert gradient.any() == (each >= 0).any()
    assert torch.equal(
        next_token_loss(logits, targets), F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    )


def test_quantisers_of_zeros() -> None:
    for shape, dim in (((3, 4), (0, 1)), ((3, 4), (1,)), ((2, 3, 4), (1, 2))):
        weight = torch.zeros(shape, requires_grad=True)
        quantised = ternary(weight, dim)
        quantised.sum().backward()
        assert finite(quantised, weight.grad)
        assert not quantised.any()
    weight, step = torch.zeros(3, 4, requires_grad=True), torch.zeros(1, 1, requires_grad=True)
    quantised = learned_step_ternary(weight, step)
    quantised.sum().backward()
    assert finite(quantised, weight.grad, step.grad)


def test_entropy_of_a_certain_router_and_noise_of_a_zero_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torch.eye(3, requires_grad=True)
    entropy = pathway_entropy(weights)
    entropy.sum().backward()
    assert finite(entropy, weights.grad)
    monkeypatch.setattr(Tensor, "exponential_", Tensor.zero_)
    assert finite(gumbel_like(torch.zeros(4)))


def test_a_code_direction_for_nothing() -> None:
    for rule in ("ste", "bp"):
        h = torch.zeros(2, 8, requires_grad=True)
        layer = VQResidualDirection(4, 8)
        layer.rule = rule
        layer(h).sum().backward()
        assert finite(h.grad)


def test_directions_that_are_none_learn_nothing_beside_some_that_are() -> None:
    torch.manual_seed(0)
    columns = torch.randn(3, 6, 2, dtype=torch.float64)
    columns[1] = 0.0
    columns[2, :, 1] = -2 * columns[2, :, 0]
    columns.requires_grad_()
    upstream = torch.randn(3, 6, 2, dtype=torch.float64)
    q = orthonormal(columns)
    (found,) = torch.autograd.grad(q, columns, upstream)
    assert finite(q)
    assert not found[1:].any()
    alone = columns[:1].detach().clone().requires_grad_()
    expected, r = torch.linalg.qr(alone)
    expected = expected * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    assert torch.equal(q[:1], expected)
    torch.testing.assert_close(found[:1], torch.autograd.grad(expected, alone, upstream[:1])[0])


def test_feedback_of_zeros() -> None:
    for feedback, weight in ((torch.zeros(3, 4), torch.randn(3, 4)), (torch.randn(3, 4), torch.zeros(3, 4))):
        drawn = probes(8, weight, torch.Generator().manual_seed(0))
        assert finite(aligned(feedback, weight, drawn, 0.1))
