"""Local learning rules of linear layers, against the formulas written out."""

import os
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from app.models import feedback
from app.models.direct_feedback import Errors
from app.models.local_gpt import FrozenSubspace, LocalGPT, LocalLinear, VQResidualDirection, hard_top_k
from app.models.local_linear import local_linears
from tests import tolerances
from tests.parity import relative_error
from tests.support.two_ranks import two_ranks

VOCAB, BLOCK = 11, 16
RULES = ["fa", "dfa", "sign_sym"]
DERIVATIVE = "dfa with the derivative"


def local_gpt(**options: Any) -> LocalGPT:
    torch.manual_seed(1)
    sizes = {
        "block_size": BLOCK,
        "vocab_size": VOCAB,
        "n_layers": 2,
        "n_heads": 2,
        "d_model": 16,
        "dropout": 0.0,
    }
    if options.get("method") == DERIVATIVE:
        options |= {"method": "dfa", "dfa_derivative": True}
    return LocalGPT(**sizes | options)


def batch(n: int = 4, seed: int = 0, T: int = 13) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCAB, (n, T + 1), generator=draw)
    return tokens[:, :-1], tokens[:, 1:]


def gradient(network: nn.Module, loss: Tensor) -> Tensor:
    """All parameters' as one vector."""
    parts = torch.autograd.grad(loss, list(network.parameters()))
    return torch.cat([part.flatten() for part in parts])


def gradients(network: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*network.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


# -- one layer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fa", "sign_sym"])
def test_errors_go_down_through_another_matrix(method: Any) -> None:
    torch.manual_seed(0)
    layer = LocalLinear(12, 9, True, method).double()
    x = torch.randn(3, 5, 12, dtype=torch.float64, requires_grad=True)
    g = torch.randn(3, 5, 9, dtype=torch.float64)
    with torch.no_grad():  # the sign is that of the weights now, the scale that of the start
        layer.weight.neg_()
    y = layer(x)
    assert torch.equal(y, F.linear(x, layer.weight, layer.bias))
    y.backward(g)
    if method == "fa":
        assert layer.feedback is not None
        matrix = layer.feedback
    else:
        assert layer.sign_scale is not None
        assert layer.sign_scale.item() == pytest.approx(layer.weight.std().item(), rel=1e-6)
        matrix = layer.sign_scale * layer.weight.sign()
    assert layer.bias is not None
    assert relative_error(x.grad, torch.einsum("bto,oi->bti", g, matrix)) <= 1e-12  # type: ignore[arg-type]
    assert relative_error(layer.weight.grad, torch.einsum("bto,bti->oi", g, x)) <= 1e-12  # type: ignore[arg-type]
    assert relative_error(layer.bias.grad, g.sum((0, 1))) <= 1e-12  # type: ignore[arg-type]


def test_bp_is_an_ordinary_layer() -> None:
    layer = LocalLinear(12, 9)
    plain = nn.Linear(12, 9)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(5, 12)
    assert torch.equal(layer(x), plain(x))
    assert list(layer.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize("shape", [(96, 64), (64, 96), (64, 64)])
def test_how_feedback_is_drawn(shape: tuple[int, int]) -> None:
    n_out, n_in = shape
    weight = 0.03 * torch.randn(n_out, n_in, generator=torch.Generator().manual_seed(0))
    s = weight.std().item()

    def drawn(init: Any, k: int = 0, seed: int = 0, name: str = "blocks.0.mlp.fc") -> Tensor:
        return feedback.feedback_matrix(weight, init, k, seed, name)

    gaussian = drawn("gaussian")
    assert gaussian.std().item() == pytest.approx(s, rel=0.03)
    assert torch.equal(gaussian, drawn("gaussian"))
    assert not torch.equal(gaussian, drawn("gaussian", seed=1))
    assert not torch.equal(gaussian, drawn("gaussian", name="blocks.1.mlp.fc"))
    for init, size in (("orthogonal", s * max(shape) ** 0.5), ("ortho_he", 2**0.5)):
        matrix = drawn(init)
        gram = matrix @ matrix.T if n_out <= n_in else matrix.T @ matrix
        torch.testing.assert_close(gram, size**2 * torch.eye(min(shape)), rtol=1e-4, atol=1e-5)
    assert drawn("orthogonal").square().mean().sqrt().item() == pytest.approx(s, rel=1e-5)
    for k, kept in ((0, n_in // 16), (5, 5)):
        sparse = drawn("sparse", k)
        assert (sparse != 0).sum(1).eq(kept).all()
        assert sparse.square().mean().sqrt().item() == pytest.approx(s, rel=0.15)
    broadcast = feedback.broadcast_matrix(weight, 50, 0, "a")
    assert broadcast.shape == (50, n_out)
    assert broadcast.std().item() == pytest.approx(50**-0.5, rel=0.05)


def test_what_is_drawn_depends_on_the_key_alone() -> None:
    """Not on the type that tensors have by default."""
    weight = 0.03 * torch.randn(9, 32, generator=torch.Generator().manual_seed(0))
    inits: list[Any] = ["gaussian", "orthogonal", "ortho_he", "sparse"]

    def drawn() -> list[Tensor]:
        matrices = [feedback.feedback_matrix(weight, init, 0, 0, "a") for init in inits]
        probes = feedback.probes(5, weight, feedback.generator(0, "a"))
        aligned = feedback.aligned(matrices[0], weight, probes, 0.1)
        parts = [FrozenSubspace(4, 9).Q, VQResidualDirection(3, 9).codebook]
        return [*matrices, aligned, feedback.broadcast_matrix(weight, 7, 0, "a"), *parts]

    expected = drawn()
    for other in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(other)
        try:
            found = drawn()
        finally:
            torch.set_default_dtype(torch.float32)
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours.to(other), theirs.to(other))


@pytest.mark.parametrize("method", ["fa", "sign_sym"])
def test_a_single_weight_has_a_finite_scale(method: Any) -> None:
    layer = LocalLinear(1, 1, False, method)
    assert layer.feedback is None or layer.feedback.isfinite().all()
    assert layer.sign_scale is None or torch.equal(layer.sign_scale, layer.weight.detach().abs()[0, 0])


def test_a_key_is_the_beginning_of_a_hash() -> None:
    # printf %s 3/blocks.0.attn.q_proj | sha256sum
    assert feedback.key(3, "blocks.0.attn.q_proj") == 0x0D59D944AAEDB5AD


# -- the rule inside a network ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fa", "sign_sym"])
def test_every_linear_sends_down_something_else(method: str) -> None:
    network = local_gpt(method=method)
    layers = list(local_linears(network))
    assert len(layers) == 13
    for layer in layers:
        x = torch.randn(2, 7, layer.in_features, requires_grad=True)
        y = layer(x)
        g = torch.randn(y.shape)
        (found,) = torch.autograd.grad(y, x, g)
        assert relative_error(found, g @ layer.weight) >= 0.1, layer.layer_name


def test_dfa_teaches_every_linear_from_the_logits() -> None:
    """Weight gradients against the formula, with the error of the logits as autograd has it."""
    network = local_gpt(method="dfa", bias=True)
    inputs: dict[str, Tensor] = {}
    for layer in local_linears(network):
        if layer.layer_name != "head":
            layer.register_forward_hook(
                lambda layer, args, y: inputs.__setitem__(layer.layer_name, args[0].detach())
            )
    idx, targets = batch()
    output = network(idx, targets)
    (e,) = torch.autograd.grad(output.loss, output.logits, retain_graph=True)
    found = gradients(network, output.loss)
    with network.with_rule("bp"):
        exact = gradients(network, network(idx, targets).loss)
    assert relative_error(found["head.weight"], exact["head.weight"]) <= 1e-6
    assert len(inputs) == 12
    for name, x in inputs.items():
        R = network.get_submodule(name).feedback
        expected = torch.einsum("btv,vo,bti->oi", e, R, x)
        assert relative_error(found[f"{name}.weight"], expected) <= tolerances.GRADIENT, name
        assert relative_error(found[f"{name}.bias"], torch.einsum("btv,vo->o", e, R)) <= tolerances.GRADIENT
        assert relative_error(found[f"{name}.weight"], exact[f"{name}.weight"]) >= 0.1, name
    for name in exact:  # what is no linear layer below the head still learns by back-propagation
        if name.rpartition(".")[0] not in inputs:
            assert relative_error(found[name], exact[name]) <= tolerances.GRADIENT, name


@pytest.mark.parametrize("options", [{}, {"mlp_topk": 9, "bias": True}, {"ste_gelu": True}], ids=str)
def test_dfa_with_the_derivative_of_what_follows(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """``(e R ⊙ f′)ᵀ x``, with f′ as autograd has it for GELU, top-k and dropout."""
    network = local_gpt(method=DERIVATIVE, dropout=0.25, **options)
    masks: list[Tensor] = []

    def dropout(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
        if not training or p == 0:
            return x
        masks.append(torch.bernoulli(torch.full_like(x, 1 - p)) / (1 - p))
        return x * masks[-1]

    monkeypatch.setattr(F, "dropout", dropout)
    read: dict[str, tuple[Tensor, Tensor]] = {}
    for layer in local_linears(network):
        layer.register_forward_hook(
            lambda layer, args, y: read.__setitem__(layer.layer_name, (args[0].detach(), y.detach()))
        )
    idx, targets = batch()
    output = network(idx, targets)
    (e,) = torch.autograd.grad(output.loss, output.logits, retain_graph=True)
    found = gradients(network, output.loss)
    of_block = [masks[1 + 2 * i : 3 + 2 * i] for i in range(2)]  # behind o_proj, behind mlp.proj
    for i, block in enumerate(network.blocks):
        drive = read[f"blocks.{i}.mlp.fc"][1].requires_grad_()
        hidden = block.mlp.activation(drive)
        if network.config.mlp_topk:
            hidden = hard_top_k(hidden, network.config.mlp_topk)
        (slope,) = torch.autograd.grad(hidden.sum(), drive)
        if "mlp_topk" in options:
            assert slope.ne(0).sum(-1).max() <= 9
        factors = {"attn.o_proj": of_block[i][0], "mlp.proj": of_block[i][1], "mlp.fc": slope}
        for name in ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj", "mlp.fc", "mlp.proj"):
            layer = block.get_submodule(name)
            x, y = read[f"blocks.{i}.{name}"]
            error = e @ layer.feedback * factors.get(name, torch.ones_like(y))
            expected = torch.einsum("bto,bti->oi", error, x)
            assert relative_error(found[f"blocks.{i}.{name}.weight"], expected) <= tolerances.GRADIENT, name
            if layer.bias is not None:
                assert (
                    relative_error(found[f"blocks.{i}.{name}.bias"], error.sum((0, 1))) <= tolerances.GRADIENT
                )


@pytest.mark.parametrize("derivative", [False, True])
def test_saturated_and_removed_units_learn_without_the_derivative_alone(derivative: bool) -> None:
    def gradient_of_biases(top_k: int) -> Tensor:
        network = local_gpt(method="dfa", dfa_derivative=derivative, mlp_topk=top_k, bias=True, n_layers=1)
        fc = network.blocks[0].mlp.fc
        with torch.no_grad():
            fc.weight.zero_()
            fc.bias.copy_(torch.arange(64) / 64)
            fc.bias[63] = -6.0
            fc.feedback.fill_(1.0)
        loss = network(batch()[0]).logits[..., 0].sum()  # e is 1 for one logit, so that e R is 1
        return gradients(network, loss)["blocks.0.mlp.fc.bias"] / batch()[0].numel()

    saturated, removed = gradient_of_biases(0)[63], gradient_of_biases(32)[:31]
    if derivative:
        assert abs(saturated.item()) <= 4e-8
        assert not removed.any()
    else:
        assert saturated.item() == 1.0
        assert torch.equal(removed, torch.ones(31))


@pytest.mark.parametrize("V", [3, 8, 300])
def test_dfa_takes_either_order_of_the_product(V: int) -> None:
    torch.manual_seed(0)
    e, x, R = torch.randn(40, V).double(), torch.randn(40, 12).double(), torch.randn(V, 20).double()
    errors = Errors(e)
    assert relative_error(errors.gradient(x, R), (e @ R).T @ x) <= 1e-12
    assert relative_error(errors.projected(R), e @ R) <= 1e-12
    torch.testing.assert_close(errors.sum, e.sum(0), rtol=1e-12, atol=1e-12)


def test_dfa_multiplies_error_and_input_once_for_layers_that_read_the_same() -> None:
    torch.manual_seed(0)
    N, V, n_in, n_out = 40, 8, 12, 20
    wide, errors = torch.randn(N, 2 * n_in), Errors(torch.randn(N, V))
    matrices = [torch.randn(V, n_out) for _ in range(3)]
    with FlopCounterMode(display=False) as counted:
        for matrix in matrices:  # as those of queries, keys and values
            errors.gradient(wide[:, :n_in], matrix)
    assert counted.get_total_flops() == 2 * N * V * n_in + 3 * 2 * n_out * V * n_in
    beside = wide[:, n_in:]  # the same memory, another place in it
    expected = (errors.projected(matrices[0])).T @ beside
    assert relative_error(errors.gradient(beside, matrices[0]), expected) <= 1e-5


def test_dfa_without_propagation_sends_zeros() -> None:
    network = local_gpt(method="dfa", dfa_propagate=False)
    idx, targets = batch()
    found = gradients(network, network(idx, targets).loss)
    for name, value in found.items():
        if ".ln" in name:
            assert value.eq(0).all(), name
        else:
            assert value.ne(0).any(), name  # embeddings learn through the residual stream
    layer = network.get_submodule("blocks.1.mlp.fc")
    x = torch.randn(2, 16, requires_grad=True)
    (down,) = torch.autograd.grad(layer(x).sum(), x)
    assert down.eq(0).all()


@pytest.mark.parametrize("rule", RULES)
def test_back_propagation_for_a_while(rule: str) -> None:
    network, plain = local_gpt(method=rule), local_gpt(method="bp")
    plain.load_state_dict(network.state_dict(), strict=False)
    idx, targets = batch()
    own = gradient(network, network(idx, targets).loss)
    with network.with_rule("bp"):
        found = gradient(network, network(idx, targets).loss)
    assert relative_error(found, gradient(plain, plain(idx, targets).loss)) <= 1e-6
    assert torch.equal(gradient(network, network(idx, targets).loss), own)
    with network.with_rule(rule):
        assert torch.equal(gradient(network, network(idx, targets).loss), own)
    with pytest.raises(ZeroDivisionError), network.with_rule("bp"):
        raise ZeroDivisionError
    assert torch.equal(gradient(network, network(idx, targets).loss), own)
    other = next(name for name in RULES if name != rule)
    with (
        pytest.raises(ValueError, match=rf"rule = '{other}'.*known here: bp, {rule}"),
        network.with_rule(other),
    ):
        pass


def test_the_error_is_that_of_the_loss_that_is_differentiated() -> None:
    """Taken outside, scaled, weighted by token: what reaches the layers is ∂(that)/∂logits."""
    network = local_gpt(method="dfa")
    idx, targets = batch()
    weight = torch.rand(targets.shape)
    logits = network(idx).logits
    nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(weight)
    loss = 1024.0 * (nats * weight).sum()
    (e,) = torch.autograd.grad(loss, logits, retain_graph=True)
    found = gradients(network, loss)["blocks.0.mlp.fc.weight"]
    unscaled = network(idx).logits
    (again,) = torch.autograd.grad(
        unscaled, network.get_parameter("blocks.0.mlp.fc.weight"), grad_outputs=e / 1024
    )
    assert relative_error(found, 1024 * again) <= tolerances.GRADIENT
    doubled = network(idx, targets)
    once = gradients(network, doubled.loss)["blocks.0.mlp.fc.weight"]
    both = network(idx, targets)
    (both.loss / 2).backward(retain_graph=True)
    (both.loss / 2).backward()
    accumulated = network.get_parameter("blocks.0.mlp.fc.weight").grad
    assert accumulated is not None
    assert relative_error(accumulated, once) <= 1e-6


def test_a_pass_that_ended_early_leaves_nothing_behind() -> None:
    network = local_gpt(method="dfa")
    idx, targets = batch()
    expected = gradient(network, network(idx, targets).loss)
    network.blocks[0](torch.randn(2, 5, 16))  # a part alone, without logits
    assert torch.equal(gradient(network, network(idx, targets).loss), expected)
    with torch.no_grad():
        network(idx, targets)
    assert torch.equal(gradient(network, network(idx, targets).loss), expected)
    error = next(layer.output_error for layer in local_linears(network))
    assert error is not None
    for _ in range(3):  # nor does what a layer reads between passes pile up
        network.blocks[0](torch.randn(2, 5, 16))
    assert not error._expected
    logits, cache = network.prefill(idx)
    network.step(idx[:, 0], cache)
    assert logits.requires_grad


def test_a_layer_without_logits_says_so() -> None:
    layer = LocalLinear(4, 3, method="dfa", n_logits=5, layer_name="alone")
    with pytest.raises(RuntimeError, match="'alone' learns by dfa and is connected to no logits"):
        layer(torch.randn(2, 4))
    with torch.no_grad():
        layer(torch.randn(2, 4))
    unknown: Any = "hebb"
    with pytest.raises(ValueError, match="method = 'hebb'"):
        LocalLinear(4, 3, method=unknown)
    message = r"(?s)method = 'hebb'.*init = 'hebb': must be one of gaussian.*sparse_k = 5: .*\[0, 4\]"
    with pytest.raises(ValueError, match=message):
        LocalLinear(4, 3, method=unknown, init=unknown, sparse_k=5)
    with pytest.raises(ValueError, match="sparse_k = -1"):
        LocalLinear(4, 3, sparse_k=-1)
    with pytest.raises(ValueError, match="init = 'hebb': must be one of gaussian, orthogonal"):
        feedback.feedback_matrix(torch.ones(3, 4), unknown, 0, 0, "")
    with pytest.raises(ValueError, match="n_logits = 0"):
        LocalLinear(4, 3, method="dfa")


# -- the same gradients however a step is computed --------------------------------------------------------


def follow(
    rule: str, other_way: Callable[[LocalGPT, Tensor, Tensor], tuple[Tensor, Tensor]], steps: int = 200
) -> None:
    """At every 10th step of one run, loss and gradient by another way, from the same state."""
    network = local_gpt(method=rule)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for step in range(steps):
        idx, targets = batch(seed=step)
        loss = network(idx, targets).loss
        grad = gradient(network, loss)
        if step % 10 == 0:
            other_loss, other_grad = other_way(network, idx, targets)
            assert relative_error(other_loss, loss) <= tolerances.STEP_LOSS, step
            assert relative_error(other_grad, grad) <= tolerances.STEP_GRADIENT, step
        for parameter, part in zip(
            network.parameters(), grad.split([p.numel() for p in network.parameters()]), strict=True
        ):
            parameter.grad = part.view_as(parameter)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()


@pytest.mark.parametrize("rule", ["fa", "dfa", DERIVATIVE])
def test_accumulation(rule: str) -> None:
    def in_four(network: LocalGPT, idx: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        network.zero_grad()
        losses = [network(i, t).loss / 4 for i, t in zip(idx.split(1), targets.split(1), strict=True)]
        for loss in losses:
            loss.backward()
        found = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
        network.zero_grad()
        return torch.stack(losses).sum(), torch.cat(found)

    follow(rule, in_four)


@pytest.mark.stress
@pytest.mark.parametrize("rule", ["fa", pytest.param("dfa", marks=pytest.mark.stress)])
def test_whole_curves_with_accumulation(rule: str) -> None:
    curves = []
    for n_micro in (1, 4):
        network = local_gpt(method=rule)
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
        losses = []
        for step in range(200):
            idx, targets = batch(seed=step)
            optimizer.zero_grad()
            for i, t in zip(idx.chunk(n_micro), targets.chunk(n_micro), strict=True):
                loss = network(i, t).loss / n_micro
                loss.backward()
                losses.append(loss.detach())
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
        curves.append(torch.stack(losses).view(200, n_micro).sum(1))
    assert ((curves[1] - curves[0]).abs() / curves[0]).max() <= 1e-5


@pytest.mark.parametrize("rule", ["fa", "dfa", DERIVATIVE])
def test_clipping_sees_the_local_gradient(rule: str) -> None:
    network = local_gpt(method=rule)
    idx, targets = batch()
    expected = gradient(network, network(idx, targets).loss)
    network(idx, targets).loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 1e-3)
    assert norm.item() == pytest.approx(expected.norm().item(), rel=1e-6)
    clipped = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    assert relative_error(clipped, 1e-3 * expected / expected.norm()) <= tolerances.GRADIENT


def _rank(rank: int, store: str, results: Connection, rule: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    network = local_gpt(method=rule)
    parallel = DistributedDataParallel(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    errors = []
    for step in range(200):
        idx, targets = batch(seed=step)
        if step % 10 == 0:
            loss = network(idx, targets).loss
            expected = gradient(network, loss)
        own = slice(2 * rank, 2 * rank + 2)
        optimizer.zero_grad()
        half = parallel(idx[own], targets[own]).loss
        half.backward()
        if step % 10 == 0:
            mean = half.detach().clone()
            dist.all_reduce(mean)
            grads = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
            errors.append((relative_error(mean / 2, loss), relative_error(grads, expected)))
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    results.send(errors)
    dist.barrier()
    os._exit(0)


@pytest.mark.parametrize("rule", ["fa", DERIVATIVE, pytest.param("dfa", marks=pytest.mark.stress)])
def test_two_processes(tmp_path: Path, rule: str) -> None:
    found = two_ranks(partial(_rank, rule=rule), tmp_path / "store")
    for errors in found:
        assert len(errors) == 20
        for loss_error, gradient_error in errors:
            assert loss_error <= tolerances.STEP_LOSS
            assert gradient_error <= tolerances.STEP_GRADIENT


@pytest.mark.parametrize("rule", ["bp", *RULES, DERIVATIVE])
def test_bfloat16(rule: str) -> None:
    network = local_gpt(method=rule, d_model=64)
    idx, targets = batch(8)
    output = network(idx, targets)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(idx, targets)
    assert relative_error(rounded.logits, output.logits) <= tolerances.BFLOAT16
    assert relative_error(rounded.loss, output.loss) <= tolerances.BFLOAT16
    assert (
        relative_error(gradient(network, rounded.loss), gradient(network, output.loss)) <= tolerances.BFLOAT16
    )


@pytest.mark.stress
@pytest.mark.parametrize(
    "rule",
    ["fa", DERIVATIVE, *(pytest.param(rule, marks=pytest.mark.stress) for rule in ("dfa", "sign_sym"))],
)
def test_compiled_in_one_graph(rule: str) -> None:
    torch.compiler.reset()
    network = local_gpt(method=rule, n_layers=1)
    idx, targets = batch()
    expected = gradient(network, network(idx, targets).loss)
    network.compile(backend="aot_eager", fullgraph=True)
    assert relative_error(gradient(network, network(idx, targets).loss), expected) <= tolerances.STEP_GRADIENT
