"""CrystalGPT: a GPT in everything but the attention of some blocks."""

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from app.models.crystal import CrystalGPT, CrystalPatch, ResidualBasis, calibrate, random_basis
from app.models.crystal.attention import CrystalAttention
from app.models.gpt import GPT
from app.ops.crystal_attention import naive
from tests import tolerances
from tests.parity import relative_error

SIZE: dict[str, Any] = dict(vocab_size=13, block_size=19, n_layers=3, n_heads=2, d_model=12)
FORMS: list[dict[str, Any]] = [
    dict(mode="lowrank", rank=2, crystal_layers=[0, 2]),
    dict(mode="lowrank", rank=6),
    dict(mode="lowrank", rank=3, learn_basis=True),
    dict(mode="topk", top_k=1),
    dict(mode="topk", top_k=2, crystal_layers=[1]),
]
DRAW = torch.Generator().manual_seed(2)
IDX, TARGETS = torch.randint(0, 13, (2, 2, 19), generator=DRAW)


def network(seed: int = 1, **options: Any) -> CrystalGPT:
    torch.manual_seed(seed)
    made = CrystalGPT(**SIZE | options)
    with torch.no_grad():  # scores far from equal
        for parameter in made.parameters():
            if parameter.dim() == 2:
                parameter.mul_(6)
    return made


def by_hand(model: CrystalGPT) -> None:
    """Puts the definition, with A, p and ε as matrices, in the place of every crystal core."""

    class Definition(nn.Module):
        def __init__(self, core: CrystalAttention):
            super().__init__()
            self.core = core

        def forward(self, q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
            if self.core.mode == "topk" and self.core.top_k > 1:
                return naive.crystal_attention(q, k, v, "topk", top_k=self.core.top_k)
            if self.core.mode == "topk":
                return naive.crystal_attention(q, k, v, "top1", straight_through=True)
            P = self.core.basis
            if self.core.learn_basis:
                P, r = torch.linalg.qr(P)
                P = P * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]
            return naive.crystal_attention(
                q, k, v, "lowrank", rank=self.core.rank, basis=P, straight_through=True
            )

        def take_record(self) -> None:
            return None

    for layer in model.crystal_layers:
        model.blocks[layer].attn.core = Definition(model.blocks[layer].attn.core)


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_equals_its_definition(options: dict[str, Any]) -> None:
    fast, slow = network(**options), network(**options)
    by_hand(slow)
    mine, theirs = fast(IDX, TARGETS), slow(IDX, TARGETS)
    assert relative_error(mine.logits, theirs.logits) <= tolerances.OUTPUT
    mine.loss.backward()
    theirs.loss.backward()
    expected = {name.replace(".core.core.", ".core."): p.grad for name, p in slow.named_parameters()}
    for name, parameter in fast.named_parameters():
        assert parameter.grad is not None, name
        assert relative_error(parameter.grad, expected[name]) <= tolerances.GRADIENT, name


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_shares_weights_and_names_with_gpt(options: dict[str, Any]) -> None:
    torch.manual_seed(5)
    gpt = GPT(**SIZE)
    torch.manual_seed(5)
    crystal = CrystalGPT(**SIZE, **options)
    own = {name: x for name, x in crystal.state_dict().items() if not name.endswith(".attn.core.basis")}
    assert list(own) == list(gpt.state_dict())
    assert all(torch.equal(x, gpt.state_dict()[name]) for name, x in own.items())
    bases = len(crystal.state_dict()) - len(own)
    assert bases == (0 if options["mode"] == "topk" else len(crystal.crystal_layers))
    learnt = [name for name, _ in crystal.named_parameters() if name.endswith("basis")]
    assert len(learnt) == (bases if options.get("learn_basis") else 0)
    vectors = crystal.parameter_groups()[1]["params"]
    assert all(any(p is v for v in vectors) for n, p in crystal.named_parameters() if n.endswith("basis"))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_outputs_do_not_see_the_future(options: dict[str, Any], training: bool) -> None:
    model = network(**options).train(training)
    changed = IDX.clone()
    changed[:, 11:] = (changed[:, 11:] + 1) % 13
    before, after = model(IDX).logits, model(changed).logits
    assert relative_error(after[:, :11], before[:, :11]) <= 1e-6
    assert (before[:, 11:] != after[:, 11:]).any()


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_steps_from_a_cache(options: dict[str, Any]) -> None:
    model = network(**options).eval()
    with torch.no_grad():
        whole = model(IDX).logits
        first, cache = model.prefill(IDX[:, :7])
        assert relative_error(first, whole[:, 6]) <= tolerances.OUTPUT
        for t in range(7, 19):
            assert relative_error(model.step(IDX[:, t], cache), whole[:, t]) <= tolerances.OUTPUT


def test_takes_the_weights_of_a_gpt_and_equals_its_patch() -> None:
    torch.manual_seed(7)
    gpt = GPT(**SIZE)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.mul_(5)
    basis = calibrate(gpt, [1, 2], [IDX])
    model = network(rank=3, crystal_layers=[1, 2]).eval()
    model.set_basis(basis)
    model.load_state_dict(model.starting_weights(gpt.state_dict()))
    with CrystalPatch(gpt.eval(), [1, 2], "lowrank", 3, basis=basis), torch.no_grad():
        assert relative_error(model(IDX).logits, gpt(IDX).logits) <= tolerances.OUTPUT


def test_where_bases_come_from() -> None:
    """From a file first, then from the other run, then the network's own."""
    model, other = network(rank=2, basis_seed=1), network(rank=2, basis_seed=2, crystal_layers=[0])
    name = "blocks.{}.attn.core.basis".format
    own = {layer: model.state_dict()[name(layer)].clone() for layer in range(3)}
    started = model.starting_weights(other.state_dict())
    assert sorted(started) == sorted(model.state_dict())
    assert torch.equal(started[name(0)], other.state_dict()[name(0)])
    assert torch.equal(started[name(1)], own[1])
    calibrated = ResidualBasis((0, 1, 2), random_basis(6, 6, 6, 9).view(3, 2, 6, 6), torch.ones(3, 2, 6))
    model.set_basis(calibrated)
    started = model.starting_weights(other.state_dict())
    assert torch.equal(started[name(0)], calibrated.modes[0, :, :, :2])
    assert set(network(mode="topk").starting_weights(other.state_dict())) == set(GPT(**SIZE).state_dict())


def test_a_basis_that_does_not_fit_is_told() -> None:
    wrong = ResidualBasis((0, 1, 2), torch.zeros(3, 4, 3, 3), torch.ones(3, 4, 3))
    with pytest.raises(ValueError, match="of 4 heads of width 3, this network has 2 of width 6"):
        network().set_basis(wrong)
    with pytest.raises(ValueError, match="layer = 0: the basis holds layers 1 only"):
        network().set_basis(ResidualBasis((1,), torch.zeros(1, 2, 6, 6), torch.ones(1, 2, 6)))
    narrow = ResidualBasis((0, 1, 2), torch.eye(6)[:, :1].expand(3, 2, 6, 1), torch.ones(3, 2, 1))
    with pytest.raises(ValueError, match="has 1 modes per head, this network uses 4 of them"):
        network().set_basis(narrow)
    with pytest.raises(ValueError, match="uses no basis"):
        network(mode="topk").set_basis(wrong)


def test_measures() -> None:
    model = network(rank=2, crystal_layers=[0, 2])
    output = model(IDX)
    assert [record.layer for record in output.routing] == [0, 2]
    measures = model.measures(output)
    assert {name: m.unit for name, m in measures.items()} == {
        "residual_r90": "modes", "attention_entropy": "nats", "top_share": "probability",
    }  # fmt: skip
    q, k, v = output.routing[1][1:]
    p = (q @ k.mT / 6**0.5).masked_fill(~torch.ones(19, 19).tril().bool(), float("-inf")).softmax(-1)
    entropy = -(p * p.clamp(min=1e-30).log()).sum(-1).mean((0, 2))
    assert relative_error(measures["attention_entropy"].values[1], entropy) <= tolerances.OUTPUT
    assert relative_error(measures["top_share"].values[1], p.amax(-1).mean((0, 2))) <= tolerances.OUTPUT
    residual = p @ v - v.gather(2, p.argmax(-1)[..., None].expand_as(v))
    energy = torch.linalg.svdvals(residual.transpose(0, 1).flatten(1, 2).double()).square()
    r90 = 1 + (energy.cumsum(-1) / energy.sum(-1, keepdim=True) < 0.9).sum(-1)
    moments = measures["residual_r90"]
    assert moments.derive is not None
    assert moments.derive(moments.values)[1].tolist() == r90.tolist()
    assert moments.derive(moments.values).shape == (2, 2)


def test_ranks_keep_the_sequences_that_one_process_would(monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(idx: Tensor) -> list[Tensor]:
        torch.manual_seed(0)
        model = network(rank=2, n_layers=1, crystal_layers=[0])
        return list(model(idx).routing[0].k)

    idx = torch.randint(0, 11, (8, 19), generator=torch.Generator().manual_seed(1))
    alone = kept(idx)
    assert len(alone) == 4
    assert len(kept(idx[:3])) == 3
    for n_ranks in (2, 4, 8):
        monkeypatch.setattr("app.models.crystal.attention.world_size", lambda n=n_ranks: n)
        together = [k for part in idx.chunk(n_ranks) for k in kept(part)]
        if n_ranks <= 4:
            assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(alone, together, strict=True))
        else:
            assert len(together) == 8  # one of each rank, rather than none of some


def test_records_refer_to_what_is_there_and_are_left_once() -> None:
    model = network(rank=2)
    used: list[Tensor] = []
    model.blocks[1].attn.core.register_forward_pre_hook(lambda module, given: used.extend(given[:3]))
    record = model(IDX).routing[1]
    for kept, x in zip(record[1:], used, strict=True):
        assert not kept.requires_grad
        assert kept.data_ptr() == x.data_ptr()
    model.eval()
    assert model(IDX).routing == []
    assert model.measures(model(IDX)) == {}


def test_learning_a_basis_keeps_it_orthonormal_in_use() -> None:
    model = network(rank=3, learn_basis=True)
    before = model.blocks[1].attn.core.basis.detach().clone()
    for _ in range(3):
        parameters = list(model.parameters())
        gradients = torch.autograd.grad(model(IDX, TARGETS).loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(0.5 * gradient)
    core = model.blocks[1].attn.core
    assert (core.basis - before).abs().max() > 1e-4
    used = torch.linalg.qr(core.basis)[0]
    assert torch.allclose(used.mT @ used, torch.eye(3).expand(2, 3, 3), atol=1e-5)


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_a_training_step_reads_nothing_back(options: dict[str, Any]) -> None:
    class Seen(TorchDispatchMode):
        names: ClassVar[set[str]] = set()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.names.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    model = network(dropout=0.1, **options)
    with Seen():
        model(IDX, TARGETS).loss.backward()
    assert "embedding" in Seen.names
    assert not Seen.names & {"_local_scalar_dense", "nonzero", "masked_select", "index_put_", "item"}


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_mixed_precision(options: dict[str, Any]) -> None:
    model = network(**options)
    expected = model(IDX, TARGETS).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(IDX, TARGETS).loss
    assert loss.item() == pytest.approx(expected.item(), rel=0.05)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(crystal_layers=[3]), r"crystal_layers = \[3\]: there is no block 3; must lie in 0 … 2"),
        (dict(crystal_layers=[1, 1]), r"must name each block once"),
        (dict(rank=7), r"rank = 7: must be at most 6"),
        (dict(mode="topk", top_k=0), r"top_k = 0: must be at least 1"),
        (dict(mode="top1"), r"mode = top1: must be one of topk, lowrank"),
        (dict(n_heads=5, basis_seed=-1), r"(?s)basis_seed = -1.*n_heads = 5"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CrystalGPT(**SIZE | options)
