"""LocalGPT against its composition written out, every option on; where dropout falls; what each layer is given."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from app.models import feedback, local_linear
from app.models.local_gpt import LocalGPT, LocalLinear
from app.models.local_gpt.attention import LocalSelfAttention
from app.models.local_linear import local_linears
from app.ops.sigmoid_attention.dropout import Dropout
from tests import tolerances
from tests.parity import relative_error

VOCAB, BLOCK, LAYERS, HEADS, D = 11, 16, 3, 2, 12


def local_gpt(**options: Any) -> LocalGPT:
    torch.manual_seed(1)
    sizes = {"block_size": BLOCK, "vocab_size": VOCAB, "n_layers": LAYERS, "n_heads": HEADS, "d_model": D}
    network = LocalGPT(**sizes | {"dropout": 0.0} | options).double()
    with torch.no_grad():  # as they start, logits hardly depend on anything, and gains and biases on nothing
        for name, parameter in network.named_parameters():
            if name.endswith(("bias", "alpha_attn", "alpha_mlp")) or "ln" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape))
            else:
                parameter.mul_(10)
    return network


def tokens(seed: int = 0) -> Tensor:
    return torch.randint(0, VOCAB, (3, 13), generator=torch.Generator().manual_seed(seed))


def largest(x: Tensor, k: int) -> Tensor:
    if not k:
        return x
    threshold = x.detach().abs().sort(-1, descending=True).values[..., k - 1 : k]
    return x * (x.detach().abs() >= threshold)


def written_out(network: LocalGPT, idx: Tensor, masks: list[Tensor] | None = None) -> Tensor:
    """Logits from the weights alone; ``masks`` stand at the sites of dropout, in order."""
    c, w = network.config, dict(network.named_parameters())
    left = None if masks is None else list(masks)

    def drop(x: Tensor) -> Tensor:
        return x if left is None else x * left.pop(0)

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        z = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return z * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        y = x @ w[f"{name}.weight"].T
        return y + w[f"{name}.bias"] if f"{name}.bias" in w else y

    def codebook(block: int) -> Tensor:
        draw = torch.Generator().manual_seed(42 + block) if c.vq_per_block else torch.Generator()
        return F.normalize(torch.randn(c.vq_codes, c.d_model, generator=draw), dim=-1).double()

    B, T = idx.shape
    x = drop(w["tok_emb.weight"][idx] + w["pos_emb.weight"][:T])
    for i in range(c.n_layers):
        block = f"blocks.{i}"
        h = norm(x, f"{block}.ln1")
        q, k, v = (
            linear(h, f"{block}.attn.{n}_proj").view(B, T, c.n_heads, -1).transpose(1, 2) for n in "qkv"
        )
        scores = q @ k.transpose(2, 3) / math.sqrt(c.d_model / c.n_heads)
        future = torch.ones(T, T).triu(1).bool()
        if c.attn_mode == "softmax":
            a = scores.masked_fill(future, -torch.inf).softmax(-1)
        else:
            rows = -torch.arange(1, T + 1).double().log()[:, None]
            bias: Any = {"neg_log_n": -math.log(c.block_size), "zero": 0.0, "row": rows}.get(
                c.sigmoid_bias_mode, w.get(f"{block}.attn.sig_bias")
            )
            a = drop((1 / (1 + (-scores - bias).exp())).masked_fill(future, 0.0))
        mixed = (a @ v).transpose(1, 2).reshape(B, T, c.d_model)
        x = x + w.get(f"{block}.alpha_attn", 1.0) * drop(linear(mixed, f"{block}.attn.o_proj"))
        hidden = linear(norm(x, f"{block}.ln2"), f"{block}.mlp.fc")
        hidden = largest(hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2, c.mlp_topk)
        x = x + w.get(f"{block}.alpha_mlp", 1.0) * drop(linear(hidden, f"{block}.mlp.proj"))
        x = largest(x, c.resid_topk)
        if c.vq_codes:
            codes = codebook(i)
            nearest = codes[(x / x.norm(dim=-1, keepdim=True) @ codes.T).argmax(-1)]
            x = x + (x.norm(dim=-1, keepdim=True) * nearest - x).detach()
        if c.subspace_rank:
            draw = torch.Generator().manual_seed(42)
            Q = torch.linalg.qr(torch.randn(c.d_model, c.subspace_rank, generator=draw))[0].double()
            x = x @ Q @ Q.T
    assert not left
    return linear(norm(x, "ln_f"), "head")


EVERYTHING = {"mlp_topk": 9, "resid_topk": 7, "vq_codes": 5, "subspace_rank": 4, "gated_blocks": True}


@pytest.mark.parametrize(
    "options",
    [
        {"attn_mode": "softmax", "bias": True},
        *({"sigmoid_bias_mode": mode} for mode in ("neg_log_n", "zero", "learned", "row")),
        {"mlp_topk": 9},
        {"resid_topk": 7},
        {"vq_codes": 5},
        {"vq_codes": 5, "vq_per_block": True},
        {"subspace_rank": 4},
        {"gated_blocks": True},
        EVERYTHING,
        EVERYTHING | {"vq_per_block": True, "bias": True, "attn_mode": "softmax"},
    ],
    ids=str,
)
def test_the_network_is_its_composition(options: dict[str, Any]) -> None:
    network = local_gpt(**options)
    logits, expected = network(tokens()).logits, written_out(network, tokens())
    assert relative_error(logits, expected) <= 1e-7  # codes and bases are drawn in fp32
    g = torch.randn(logits.shape, dtype=torch.float64)
    found = torch.autograd.grad(logits, list(network.parameters()), g)
    theirs = torch.autograd.grad(expected, list(network.parameters()), g)
    for (name, _), ours, other in zip(network.named_parameters(), found, theirs, strict=True):
        if network.config.attn_mode == "softmax" and name.endswith("k_proj.bias"):
            assert ours.abs().max() < 1e-12  # adds the same to every score of a query
            continue
        assert other.ne(0).any(), name
        assert relative_error(ours, other) <= 1e-6, name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gated_blocks": True, "mlp_topk": 9, "vq_codes": 5},
        {"method": "dfa", "dfa_derivative": True, "mlp_topk": 9},
    ],
    ids=str,
)
def test_every_site_of_dropout(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    network = local_gpt(dropout=0.25, **options)
    masks: list[Tensor] = []

    def dropout(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
        if not training or p == 0:
            return x
        assert p == 0.25
        masks.append(torch.bernoulli(torch.full_like(x, 0.75)) / 0.75)
        return x * masks[-1]

    is_dropped = Dropout.is_dropped

    def of_weights(self: Dropout, *shape: int) -> Tensor:
        assert self.probability == 0.25
        found = is_dropped(self, *shape)
        masks.append((~found).double() / 0.75)
        return found

    monkeypatch.setattr(F, "dropout", dropout)
    monkeypatch.setattr(Dropout, "is_dropped", of_weights)
    logits = network(tokens()).logits
    one_block = [(3, HEADS, 13, 13), (3, 13, D), (3, 13, D)]
    assert [tuple(mask.shape) for mask in masks] == [(3, 13, D), *(LAYERS * one_block)]
    assert relative_error(logits, written_out(network, tokens(), masks)) <= 1e-7
    masks.clear()
    network.eval()
    assert relative_error(network(tokens()).logits, written_out(network, tokens())) <= 1e-7
    assert not masks


def test_softmax_weights_are_dropped_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    network = local_gpt(dropout=0.25, attn_mode="softmax")
    kernel, seen = F.scaled_dot_product_attention, []

    def recording(*args: Any, dropout_p: float = 0.0, **options: Any) -> Tensor:
        seen.append(dropout_p)
        return kernel(*args, dropout_p=dropout_p, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recording)
    for training, p in ((True, 0.25), (False, 0.0)):
        seen.clear()
        network.train(training)(tokens())
        assert seen == [p] * LAYERS


# -- feedback ---------------------------------------------------------------------------------------------


def drawn(**options: Any) -> list[LocalLinear]:
    torch.manual_seed(1)
    sizes = {"block_size": BLOCK, "vocab_size": 40, "n_layers": 2, "n_heads": 2, "d_model": 32}
    layers = list(local_linears(LocalGPT(**sizes | {"method": "fa"} | options)))
    assert len(layers) == 13 and layers[-1].layer_name == "head"
    return layers


@pytest.mark.parametrize(("k", "kept"), [(0, lambda n: n // 16), (3, lambda n: 3)])
def test_sparse_feedback_reaches_every_layer(k: int, kept: Any) -> None:
    for layer in drawn(fa_init_mode="sparse", fa_sparse_k=k):
        assert layer.feedback is not None
        assert (layer.feedback != 0).sum(1).eq(kept(layer.in_features)).all(), layer.layer_name


@pytest.mark.parametrize("init", ["orthogonal", "ortho_he", "gaussian"])
def test_the_way_feedback_is_drawn_reaches_every_layer(init: str) -> None:
    for layer in drawn(fa_init_mode=init):
        B, s = layer.feedback, layer.weight.std()
        assert B is not None
        gram = B @ B.T if B.shape[0] <= B.shape[1] else B.T @ B
        size = 2.0 if init == "ortho_he" else max(B.shape) * s.square()
        error = relative_error(gram, size * torch.eye(len(gram)))
        assert error >= 0.1 if init == "gaussian" else error <= 1e-4, layer.layer_name
        if init == "gaussian":
            draw = feedback.generator(0, layer.layer_name)
            assert relative_error(B, s.detach() * torch.randn(B.shape, generator=draw)) <= 1e-6


@pytest.mark.parametrize("together", [0, 2 * 12 * 12, 2**24])
def test_one_step_of_feedback_towards_the_weights(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_linear, "WEIGHTS_TOGETHER", together)
    network = local_gpt(method="fa", fa_grape=True, fa_grape_n_probe=7, fa_grape_lr=0.3, seed=4)
    before = [B.clone() for B in network.running_state()]
    with torch.no_grad():
        network.after_optimizer_step(9)
    layers = [layer for layer in local_linears(network) if layer is not network.head]
    for layer, B in zip(layers, before, strict=True):
        W, draw = layer.weight.detach(), feedback.generator(4, layer.layer_name, 9)
        V = torch.randn(7, W.shape[1], generator=draw).double()
        J = (V @ W.T).T @ V / 7
        J, unit = J / J.norm(), B / B.norm()
        moved = unit + 0.3 * (J - (unit * J).sum() * unit)
        assert layer.feedback is not None
        assert relative_error(layer.feedback, B.norm() * moved / moved.norm()) <= 1e-10, layer.layer_name


def test_feedback_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn_for: list[str] = []
    original = feedback.feedback_matrix

    def counting(*args: Any) -> Tensor:
        drawn_for.append(args[-1])
        return original(*args)

    monkeypatch.setattr(feedback, "feedback_matrix", counting)
    network = local_gpt(method="fa")
    assert drawn_for == [layer.layer_name for layer in local_linears(network)]


# -- types ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["neg_log_n", "row", "learned"])
def test_the_bias_of_sigmoid_attention_is_never_rounded(mode: str) -> None:
    """−ln 256 in bf16 is 0.014 off: 1.4 % of every weight, several times what rounding the weights costs."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        network = LocalGPT(n_layers=1, n_heads=2, d_model=16, vocab_size=5, sigmoid_bias_mode=mode)
    finally:
        torch.set_default_dtype(torch.float32)
    attention = network.blocks[0].attn
    assert isinstance(attention, LocalSelfAttention)
    q = torch.randn(1, 2, 256, 8).bfloat16()
    bias = attention._bias(q, 256)
    rows = -torch.arange(1, 257).double().log()[:, None]
    exact = rows if mode == "row" else torch.tensor(-math.log(256), dtype=torch.float64)
    assert bias.dtype == torch.float32
    assert relative_error(bias, exact) <= 1e-7
    if mode != "learned":
        assert torch.equal(attention._bias(q.double(), 256), exact)
    weights = attention.core(q, q, torch.eye(256).bfloat16().expand(1, 2, 256, 256), 0.0, bias)
    scores = (q * 8**-0.5) @ q.transpose(2, 3)
    expected = torch.sigmoid(scores.double() + exact).tril()
    assert relative_error(weights, expected) <= 2**-9


def test_dfa_computes_in_the_type_of_autocast() -> None:
    layer = LocalLinear(12, 9, method="dfa", n_logits=5, propagate=False)
    kept: list[Tensor] = []

    class Recording:
        def expect(self, layer: LocalLinear, x: Tensor) -> None:
            kept.append(x)

    recording: Any = Recording()
    layer.output_error = recording
    for x in (torch.randn(2, 12, requires_grad=True), torch.randn(2, 12, dtype=torch.float64)):
        with torch.autocast("cpu", torch.bfloat16):
            if x.dtype == torch.float64:
                layer = layer.double()
            y = layer(x)
        expected = torch.float64 if x.dtype == torch.float64 else torch.bfloat16
        assert kept[-1].dtype == expected
        assert not kept[-1].requires_grad
        if x.requires_grad:
            assert y.dtype == torch.bfloat16
            (down,) = torch.autograd.grad(y.sum(), x)
            assert down.dtype == torch.float32 and down.eq(0).all()


@pytest.mark.parametrize("rule", ["bp", "fa", "dfa", "sign_sym"])
@pytest.mark.parametrize("mode", ["ste", "center_scale"])
def test_a_network_of_bfloat16(mode: str, rule: str) -> None:
    network = local_gpt(ln_mode=mode, method=rule, vq_codes=5, subspace_rank=4, gated_blocks=True)
    for parameter in network.parameters():
        parameter.data /= 4
    idx, targets = tokens(), tokens(1)
    expected = network(idx, targets).loss
    output = network.bfloat16()(idx, targets)
    assert output.logits.dtype == torch.bfloat16
    output.loss.backward()
    assert relative_error(output.loss, expected) <= 5 * tolerances.BFLOAT16  # another code may be nearest
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
