"""What a LocalGPT is, beside its recorded outputs: causal, cached, frozen where asked, rebuilt from its description."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from app.loading import build
from app.models.attention import SoftmaxAttention
from app.models.generation import generate
from app.models.language_model import LanguageModel
from app.models.layers import LayerNorm
from app.models.local_gpt import LocalGPT, LocalGPTConfig, softmax_value_mix
from app.models.local_linear import local_linears
from app.records import LanguageModelOutput
from tests import tolerances
from tests.parity import relative_error

VOCAB, BLOCK = 11, 16
ATTENTION: list[dict[str, Any]] = [
    {"attn_mode": "softmax"},
    *({"sigmoid_bias_mode": mode} for mode in ("neg_log_n", "zero", "learned", "row")),
]


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
    network = LocalGPT(**sizes | options)
    with torch.no_grad():  # as they start, logits hardly depend on anything
        for layer in local_linears(network):
            layer.weight.mul_(10)
    return network


def tokens(T: int = 13, n: int = 3, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCAB, (n, T), generator=torch.Generator().manual_seed(seed))


# -- configuration ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attn_mode": "linear"}, r"^attn_mode = linear: must be one of sigmoid, softmax$"),
        ({"method": "hebb", "ln_mode": "none"}, r"(?s)method = hebb.*ln_mode = none"),
        ({"sigmoid_bias_mode": "x", "fa_init_mode": "y"}, r"(?s)sigmoid_bias_mode = x.*fa_init_mode = y"),
        ({"n_heads": 5}, r"^n_heads = 5: must divide d_model = 384$"),
        (
            {"mlp_topk": 1537, "resid_topk": 385},
            r"(?s)mlp_topk = 1537.*at most .*1536.*resid_topk = 385.*at most .*384",
        ),
        ({"subspace_rank": 384}, r"subspace_rank = 384: .*below d_model = 384"),
        ({"subspace_rank": -1, "vq_codes": -1}, r"(?s)vq_codes = -1.*subspace_rank = -1"),
        (
            {"fuse_attn_local": True},
            r"(?s)fuse_attn_local = true: needs attn_mode.*needs dropout: 0",
        ),
        ({"n_layers": 0, "dropout": 1.0}, r"(?s)n_layers = 0.*dropout = 1.0"),
        ({"fa_grape_n_probe": 0, "fa_grape_lr": 0.0}, r"(?s)fa_grape_n_probe = 0.*fa_grape_lr = 0.0"),
        ({"fa_sparse_k": 400}, r"fa_sparse_k = 400"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LocalGPTConfig(**options)


def test_edges_of_the_ranges() -> None:
    LocalGPTConfig(mlp_topk=1536, resid_topk=384, subspace_rank=383, fa_sparse_k=384, vq_codes=1)
    LocalGPTConfig(attn_mode="softmax", dropout=0.0, fuse_attn_local=True)


def test_the_default_is_the_known_network() -> None:
    network = LocalGPT(LocalGPTConfig(attn_mode="softmax"))
    D, V, T = 384, 65, 256
    assert network.parameter_counts() == {
        "trainable": 6 * (12 * D * D + 4 * D) + 2 * V * D + T * D + 2 * D,
        "frozen": 0,
        "feedback": 0,
    }


@pytest.mark.parametrize("options", [{}, {"method": "dfa", "seed": 3, "gated_blocks": True}], ids=str)
def test_rebuilt_from_its_description(options: dict[str, Any]) -> None:
    network = local_gpt(**options)
    description = network.description()
    assert description["class_path"] == "app.models.local_gpt.network.LocalGPT"
    assert all(isinstance(value, int | float | str | bool) for value in description["init_args"].values())
    twin = build(description)
    assert isinstance(twin, LocalGPT)
    assert twin.config == network.config
    twin.load_state_dict(network.state_dict())
    assert torch.equal(twin(tokens()).logits, network(tokens()).logits)
    assert LocalGPT(network.config).description() == description
    with pytest.raises(TypeError, match="not both"):
        LocalGPT(network.config, n_layers=2)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    network = LocalGPT(n_layers=4, d_model=96, block_size=64, bias=True, method="fa")
    for name in ("tok_emb", "pos_emb", "head", "blocks.1.mlp.fc", "blocks.2.attn.q_proj"):
        assert network.get_parameter(f"{name}.weight").std().item() == pytest.approx(0.02, rel=0.05), name
    for name in ("blocks.1.attn.o_proj", "blocks.3.mlp.proj"):
        layer = network.get_submodule(name)
        assert layer.weight.std().item() == pytest.approx(0.02 / math.sqrt(8), rel=0.05)  # type: ignore[union-attr]
        assert layer.feedback.std().item() == pytest.approx(layer.weight.std().item(), rel=0.05)  # type: ignore
        assert layer.bias.eq(0).all()  # type: ignore[union-attr, operator]


def test_feedback_depends_on_the_seed_alone() -> None:
    ours = local_gpt(method="dfa")
    torch.manual_seed(99)
    other_weights = LocalGPT(ours.config)
    assert not torch.equal(ours.tok_emb.weight, other_weights.tok_emb.weight)
    other_seed = local_gpt(method="dfa", seed=1)
    drawn = [
        {name: b for name, b in network.state_dict().items() if name.endswith("feedback")}
        for network in (ours, other_weights, other_seed)
    ]
    assert len(drawn[0]) == 12
    for name, matrix in drawn[0].items():
        assert torch.equal(matrix, drawn[1][name])
        assert not torch.equal(matrix, drawn[2][name])
    shapes = {tuple(matrix.shape) for matrix in drawn[0].values()}
    assert shapes == {(VOCAB, 16), (VOCAB, 64)}


def test_nothing_fixed_is_trained_or_saved_twice() -> None:
    network = local_gpt(vq_codes=5, subspace_rank=4, vq_per_block=True)
    assert not [name for name in network.state_dict() if "vq" in name or "subspace" in name]
    books = [quantiser.codebook for quantiser in network.vq]
    assert len(books) == 2
    expected = F.normalize(torch.randn(5, 16, generator=torch.Generator().manual_seed(43)), dim=-1)
    assert torch.equal(books[1], expected)  # type: ignore[arg-type]
    assert len(local_gpt(vq_codes=5).vq) == 1


# -- attention --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [*ATTENTION, {"mlp_topk": 9, "resid_topk": 7, "vq_codes": 5}], ids=str)
def test_outputs_do_not_see_the_future(options: dict[str, Any], training: bool) -> None:
    network = local_gpt(**options).train(training)
    idx = tokens(BLOCK)
    changed = idx.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % VOCAB
    before, after = network(idx).logits, network(changed).logits
    assert relative_error(after[:, :9], before[:, :9]) <= 1e-6
    assert (before[:, 9:] != after[:, 9:]).any()


@pytest.mark.parametrize("options", [*ATTENTION, {"resid_topk": 7, "gated_blocks": True}], ids=str)
def test_steps_equal_the_whole(options: dict[str, Any]) -> None:
    network = local_gpt(**options).eval()
    assert network.can_step
    idx = tokens(BLOCK)
    whole = network(idx).logits
    with torch.no_grad():
        logits, cache = network.prefill(idx[:, :5])
        assert relative_error(logits, whole[:, 4]) <= tolerances.OUTPUT
        for position in range(5, BLOCK):
            logits = network.step(idx[:, position], cache)
            assert relative_error(logits, whole[:, position]) <= tolerances.OUTPUT


@pytest.mark.parametrize("options", ATTENTION, ids=str)
def test_generation_with_and_without_a_cache(options: dict[str, Any]) -> None:
    network = local_gpt(**options)
    sampled: dict[bool, Tensor] = {}
    for can_step in (True, False):
        network.can_step = can_step
        sampled[can_step] = network.generate(
            tokens(4), 2 * BLOCK, temperature=0.7, top_k=3, generator=torch.Generator().manual_seed(5)
        )
    assert sampled[True].shape == (3, 4 + 2 * BLOCK)
    assert torch.equal(sampled[True][:, :4], tokens(4))
    assert torch.equal(sampled[True], sampled[False])
    assert network.training
    stream = generate(network, tokens(4), 3, temperature=0)
    assert torch.equal(torch.stack(list(stream), 1), network.generate(tokens(4), 3, temperature=0)[:, 4:])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("row", lambda i: (i + 1) / (i + 2)),
        ("neg_log_n", lambda i: (i + 1) / (BLOCK + 1)),
        ("learned", lambda i: (i + 1) / (BLOCK + 1)),
        ("zero", lambda i: (i + 1) / 2),
    ],
)
def test_how_much_a_row_attends_at_first(mode: str, expected: Any) -> None:
    attention = local_gpt(sigmoid_bias_mode=mode).blocks[0].attn
    q = torch.zeros(1, 2, BLOCK, 8)
    sums = attention.core(q, q, torch.ones_like(q), 0.0, attention._bias(q, BLOCK))[0, 0, :, 0]
    rows = torch.tensor([expected(i) for i in range(BLOCK)])
    torch.testing.assert_close(sums.detach(), rows)


def test_sigmoid_attention_by_hand() -> None:
    network = local_gpt(sigmoid_bias_mode="neg_log_n")
    attention = network.blocks[0].attn
    x = torch.randn(2, 7, 16)
    weights = {name: p.detach() for name, p in attention.named_parameters()}
    q, k, v = (x @ weights[f"{name}_proj.weight"].T for name in "qkv")
    heads = []
    for h in range(2):
        part = slice(8 * h, 8 * h + 8)
        a = torch.zeros(2, 7, 7)
        for i in range(7):
            for j in range(i + 1):
                score = (q[:, i, part] * k[:, j, part]).sum(-1) / math.sqrt(8) - math.log(BLOCK)
                a[:, i, j] = 1 / (1 + (-score).exp())
        heads.append(a @ v[..., part])
    expected = torch.cat(heads, -1) @ weights["o_proj.weight"].T
    assert relative_error(attention(x), expected) <= tolerances.OUTPUT


def test_attention_weights_are_dropped_in_training_only() -> None:
    for options in ({"attn_mode": "softmax"}, {}):
        network = local_gpt(dropout=0.5, **options)
        core = network.blocks[0].attn.core
        q = torch.randn(1, 2, 9, 8)
        extra = () if options else (torch.zeros(()),)
        assert not torch.equal(core(q, q, q, 0.5, *extra), core(q, q, q, 0.5, *extra))
        network.eval()
        assert torch.equal(network(tokens()).logits, network(tokens()).logits)


def test_softmax_attention_can_be_exchanged() -> None:
    """By the fused formula: the same outputs and gradients, with which ``fuse_attn_local`` is computed."""

    class Fused(SoftmaxAttention):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
            scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            return softmax_value_mix(scores.masked_fill(mask, float("-inf")), v)

    network = local_gpt(attn_mode="softmax", fuse_attn_local=True)
    output = network(tokens(), tokens(seed=1))
    output.loss.backward()
    expected = {name: p.grad for name, p in network.named_parameters()}
    network.zero_grad()
    for block in network.blocks:
        block.attn.core = Fused()
    fused = network(tokens(), tokens(seed=1))
    fused.loss.backward()
    assert relative_error(fused.logits, output.logits) <= tolerances.OUTPUT
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        assert relative_error(parameter.grad, expected[name]) <= tolerances.GRADIENT, name  # type: ignore[arg-type]


def test_too_long_a_context_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"17 tokens.*block_size = 16"):
        local_gpt()(torch.zeros(1, 17, dtype=torch.int64))


# -- parts ------------------------------------------------------------------------------------------------


def test_what_is_frozen() -> None:
    def trained(**options: Any) -> set[str]:
        network = local_gpt(gated_blocks=True, **options)
        counts = network.parameter_counts()
        assert counts["trainable"] == sum(p.numel() for g in network.parameter_groups() for p in g["params"])
        return {name for name, p in network.named_parameters() if p.requires_grad}

    everything = trained()
    assert trained(freeze_emb=True) == everything - {"tok_emb.weight", "pos_emb.weight"}
    around = {"tok_emb.weight", "pos_emb.weight", "ln_f.weight", "ln_f.bias", "head.weight"}
    for method in ("bp", "fa", "dfa"):
        assert trained(freeze_blocks=True, method=method) == around
    for mode in ("bp", "ste", "center_scale", "projected"):
        names = trained(train_affine=False, ln_mode=mode)
        assert names == {name for name in everything if "ln" not in name}


def test_norms_of_a_mode() -> None:
    for mode, surrogates in (("bp", 0), ("projected", 0), ("ste", 5), ("center_scale", 5)):
        network = local_gpt(ln_mode=mode)
        follows = [m for m in network.modules() if "ste" in getattr(m, "rules", ())]
        follows += [m for m in network.modules() if "center_scale" in getattr(m, "rules", ())]
        assert len(follows) == surrogates
        assert sum(type(m) is LayerNorm for m in network.modules()) == 5 - surrogates


def test_surrogates_are_exact_under_back_propagation() -> None:
    options: dict[str, Any] = {"ln_mode": "ste", "ste_gelu": True, "ste_sigmoid": True}
    network, plain = local_gpt(**options), local_gpt()
    plain.load_state_dict(network.state_dict())
    for model in (network, plain):
        with model.with_rule("bp"):
            model(tokens(), tokens(seed=1)).loss.backward()
    for (name, ours), theirs in zip(network.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert relative_error(ours.grad, theirs.grad) <= tolerances.GRADIENT, name


def test_residual_top_k_reaches_the_stream() -> None:
    network = local_gpt(resid_topk=5, mlp_topk=3)
    seen: list[Tensor] = []
    network.blocks[0].register_forward_hook(lambda block, args, x: seen.append(x))
    network.blocks[0].mlp.proj.register_forward_hook(lambda layer, args, x: seen.append(args[0]))
    network(tokens())
    hidden, stream = seen
    assert (hidden != 0).sum(-1).eq(3).all()
    assert (stream != 0).sum(-1).eq(5).all()


def test_gates_multiply_the_branches() -> None:
    network = local_gpt(gated_blocks=True)
    with torch.no_grad():
        for block in network.blocks:
            block.alpha_attn.zero_()
            block.alpha_mlp.zero_()
    position = torch.arange(13)
    expected = network.head(network.ln_f(network.tok_emb(tokens()) + network.pos_emb(position)))
    assert relative_error(network(tokens()).logits, expected) <= tolerances.OUTPUT


# -- feedback that follows the weights --------------------------------------------------------------------


def test_grape_converges_to_the_weights() -> None:
    network = local_gpt(method="fa", fa_grape=True, fa_grape_n_probe=256)
    layers = [layer for layer in local_linears(network) if layer is not network.head]
    of_head = network.head.feedback.clone()
    before = [layer.feedback.norm().item() for layer in layers if layer.feedback is not None]
    assert all(
        torch.equal(a, layer.feedback) for a, layer in zip(network.running_state(), layers, strict=True)
    )  # type: ignore[arg-type]
    cosines = []
    for step in range(1, 81):
        with torch.no_grad():
            network.after_optimizer_step(step)
        measure = network.measures(empty())["feedback_cosine"]
        cosines.append(measure.values.min().item())
    assert abs(cosines[0]) < 0.5
    assert cosines[-1] > 0.97
    after = [layer.feedback.norm().item() for layer in layers if layer.feedback is not None]
    assert after == pytest.approx(before, rel=1e-4)
    assert measure.values.shape == (2, 6)
    assert torch.equal(network.head.feedback, of_head)  # which keeps its own


def test_grape_probes_depend_on_the_step() -> None:
    ours, same, later = (local_gpt(method="fa", fa_grape=True) for _ in range(3))
    with torch.no_grad():
        ours.after_optimizer_step(7)
        torch.manual_seed(123)
        same.after_optimizer_step(7)
        later.after_optimizer_step(8)
    for a, b, c in zip(ours.running_state(), same.running_state(), later.running_state(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_feedback_stays_where_it_is_without_grape() -> None:
    network = local_gpt(method="fa")
    assert network.running_state() == []
    before = {name: b.clone() for name, b in network.named_buffers()}
    network.after_optimizer_step(1)
    assert all(torch.equal(before[name], b) for name, b in network.named_buffers())


# -- doors ------------------------------------------------------------------------------------------------


def empty() -> LanguageModelOutput:
    return LanguageModelOutput(torch.empty(0), None, torch.zeros(()), [])


def test_measures_are_read_off_the_weights() -> None:
    network = local_gpt(gated_blocks=True, sigmoid_bias_mode="learned", method="sign_sym")
    measures = network.measures(empty())
    assert torch.equal(measures["branch_gate"].values, torch.ones(2, 2))
    torch.testing.assert_close(measures["sigmoid_bias"].values, torch.full((2,), -math.log(BLOCK)))
    # Between a Gaussian matrix and its signs: E|w| / s.
    torch.testing.assert_close(
        measures["feedback_cosine"].values, torch.full((2, 6), (2 / math.pi) ** 0.5), rtol=0.08, atol=0
    )
    assert not local_gpt().measures(empty())


def test_block_outputs_are_kept_for_a_while() -> None:
    network = local_gpt()
    with network.layer_outputs() as kept:
        network(tokens())
    assert list(kept) == ["blocks.0", "blocks.1"]
    assert kept["blocks.1"].shape == (3, 13, 16)
    last = kept["blocks.1"]
    assert relative_error(network.head(network.ln_f(last)), network(tokens()).logits) <= tolerances.OUTPUT
    kept.clear()
    network(tokens())
    assert not kept
    with LanguageModel().layer_outputs() as none:
        pass
    assert not none


def test_no_value_is_read_back_in_a_step() -> None:
    network = local_gpt(method="fa", fa_grape=True, resid_topk=5, vq_codes=4, mlp_topk=9)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        network(tokens(), tokens(seed=1)).loss.backward()
        with torch.no_grad():
            network.after_optimizer_step(1)
    assert "aten::_local_scalar_dense" not in {event.key for event in profile.key_averages()}
