"""Attention as top key plus residual: the fixture, the definition, and every gradient."""

from typing import Any

import pytest
import torch
from torch import Tensor

from app.models.crystal import CrystalAttention, crystal_attention, decompose_attention, random_basis
from app.ops import Form, use_form
from app.ops.crystal_attention import naive, vectorized
from app.ops.crystal_attention.modes import orthonormal
from tests import tolerances
from tests.parity import load_fixture, relative_error

CASES: list[tuple[str, dict[str, Any]]] = [
    ("top1", {}),
    ("topk", {"top_k": 1}),
    ("topk", {"top_k": 3}),
    ("full", {}),
    ("lowrank", {"rank": 2}),
    ("lowrank", {"rank": 7}),
    ("random", {"rank": 3}),
]
# (B, H, T, S, d): one position, odd sizes, a step from a cache, the last part of a longer context.
SIZES = [(2, 3, 1, 1, 7), (2, 3, 23, 23, 7), (1, 2, 1, 9, 7), (2, 2, 5, 13, 7)]


def tensors(size: tuple[int, int, int, int, int], seed: int = 0) -> dict[str, Tensor]:
    B, H, T, S, d = size
    draw = torch.Generator().manual_seed(seed)
    shapes = {"q": (B, H, T, d), "k": (B, H, S, d), "v": (B, H, S, d)}
    return {name: torch.randn(shape, generator=draw).requires_grad_() for name, shape in shapes.items()}


def gradients(y: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(7))
    found = torch.autograd.grad(y, leaves, upstream, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]


def test_fixture() -> None:
    fixture = load_fixture("crystal_attention")
    q, k, v, basis = (fixture.tensors[name] for name in ("q", "k", "v", "basis"))
    forms = [("top1", {}, "top1"), ("full", {}, "full")]
    forms += [("topk", {"top_k": n}, f"top{n}") for n in (2, 4)]
    forms += [("lowrank", {"rank": r, "basis": basis}, f"lowrank{r}") for r in fixture.case["ranks"]]
    for module in (naive, vectorized):
        for mode, options, name in forms:
            y = module.crystal_attention(q, k, v, mode, **options)
            assert relative_error(y, fixture.tensors[name]) <= tolerances.OUTPUT, name
        index, top, residual = module.decompose_attention(q, k, v)
        assert relative_error(residual, fixture.tensors["residual"]) <= tolerances.OUTPUT
        assert torch.equal(top, fixture.tensors["top1"])
        assert torch.equal(v.gather(2, index[..., None].expand_as(q)), top)
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        y = module.crystal_attention(*leaves, "lowrank", rank=3, basis=basis)
        y.backward(fixture.tensors["grad_lowrank3"])
        for x, name in zip(leaves, "qkv", strict=True):
            expected = fixture.tensors[f"grad.lowrank3.{name}"]
            assert relative_error(x.grad, expected) <= tolerances.GRADIENT, name


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("mode", "options"), CASES, ids=str)
def test_equals_the_definition(
    mode: Any, options: dict[str, Any], size: tuple[int, int, int, int, int], through: bool
) -> None:
    given = tensors(size)
    leaves = list(given.values())
    if mode == "lowrank":
        basis = random_basis(size[1], size[-1], size[-1], seed=3).requires_grad_()
        options, leaves = options | {"basis": basis}, [*leaves, basis]
    scale = 0.6
    expected = naive.crystal_attention(**given, mode=mode, **options, scale=scale, straight_through=through)
    y = crystal_attention(**given, mode=mode, **options, scale=scale, straight_through=through)
    assert relative_error(y, expected) <= tolerances.OUTPUT
    for x, mine, theirs in zip(leaves, gradients(y, leaves), gradients(expected, leaves), strict=True):
        assert (mine - theirs).norm() <= tolerances.GRADIENT * theirs.norm() + 1e-6, x.shape


@pytest.mark.parametrize("scale", [None, 0.3])
def test_full_is_softmax_attention(scale: float | None) -> None:
    given = tensors((2, 3, 23, 23, 7))
    leaves = list(given.values())
    for through in (False, True):
        expected = torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=True, scale=scale)
        y = crystal_attention(*leaves, "full", scale=scale, straight_through=through)
        assert relative_error(y, expected) <= tolerances.OUTPUT
        for mine, theirs in zip(gradients(y, leaves), gradients(expected, leaves), strict=True):
            assert relative_error(mine, theirs) <= tolerances.GRADIENT


@pytest.mark.parametrize("form", ["naive", "vectorized"])
@pytest.mark.parametrize(("mode", "options"), [("full", {}), ("topk", {"top_k": 40})], ids=str)
def test_dropout_is_on_the_attention_weights(mode: Any, options: dict[str, Any], form: Form) -> None:
    # Equal weights and the identity for values: the output is the weights themselves, of which a query sees all.
    q = torch.zeros(2, 3, 1, 40)
    v = torch.eye(40).expand(2, 3, 40, 40)
    with use_form(form):
        weights = torch.cat([crystal_attention(q, v, v, mode, **options, dropout=0.5) for _ in range(50)])
    kept = weights > 0.5 / 40
    assert 0.45 < kept.float().mean() < 0.55
    torch.testing.assert_close(weights, 2 / 40 * kept)


def test_scores_learn_as_in_softmax_attention() -> None:
    given = tensors((2, 3, 23, 23, 7))
    leaves = list(given.values())
    basis = random_basis(3, 7, 2)
    expected = torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=True)
    y = crystal_attention(*leaves, "lowrank", 2, basis=basis, straight_through=True)
    for mine, theirs in list(zip(gradients(y, leaves), gradients(expected, leaves), strict=True))[:2]:
        assert relative_error(mine, theirs) <= tolerances.GRADIENT


def test_the_choice_is_made_tile_by_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    given = tensors((2, 2, 11, 14, 5))
    whole = decompose_attention(**given)[0]
    monkeypatch.setattr(vectorized, "QUERY_TILE", 4)
    assert torch.equal(decompose_attention(**given)[0], whole)
    assert torch.equal(naive.decompose_attention(**given)[0], whole)


def test_equal_scores_go_to_the_lowest_position() -> None:
    q = torch.zeros(1, 1, 6, 4)
    index, _, _ = decompose_attention(q, torch.ones(1, 1, 6, 4), torch.randn(1, 1, 6, 4))
    assert index.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("mode", "options"), CASES, ids=str)
def test_masks(mode: Any, options: dict[str, Any], dtype: torch.dtype) -> None:
    """Keys out of sight leave no trace; a query that sees nothing is finite."""
    given = {name: 4 * x.detach().to(dtype) for name, x in tensors((2, 3, 9, 9, 7)).items()}
    if mode == "lowrank":
        options = options | {"basis": random_basis(3, 7, 7)}
    padded = torch.ones(2, 1, 9, 9, dtype=torch.bool).tril()
    padded[1, :, :, :3] = False  # the second sequence begins at position 3
    additive = torch.zeros(2, 1, 9, 9, dtype=dtype).masked_fill(~padded, float("-inf"))
    bool_mask = crystal_attention(**given, mode=mode, **options, mask=padded)
    assert bool_mask.isfinite().all()
    assert torch.equal(crystal_attention(**given, mode=mode, **options, mask=additive), bool_mask)
    alone = {name: x[1:, :, 3:] for name, x in given.items()}
    rounding = tolerances.OUTPUT if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    assert relative_error(bool_mask[1:, :, 3:], crystal_attention(**alone, mode=mode, **options)) <= max(
        1e-5, rounding
    )
    plain = crystal_attention(**given, mode=mode, **options)
    assert relative_error(bool_mask[:1], plain[:1]) <= rounding


@pytest.mark.parametrize(("mode", "options"), CASES, ids=str)
def test_a_mask_of_keys_alone(mode: Any, options: dict[str, Any]) -> None:
    given = {name: x.detach() for name, x in tensors((2, 3, 5, 9, 7)).items()}
    if mode == "lowrank":
        options = options | {"basis": random_basis(3, 7, 7)}
    seen = torch.arange(9) % 3 > 0
    for module in (naive, vectorized):
        y = module.crystal_attention(**given, mode=mode, **options, mask=seen)
        whole = module.crystal_attention(**given, mode=mode, **options, mask=seen.expand(2, 3, 5, 9))
        assert torch.equal(y, whole)


@pytest.mark.parametrize("is_autocast", [False, True])
def test_the_best_keys_are_chosen_unrounded(is_autocast: bool) -> None:
    """Scores that bf16 cannot tell apart: the two best keys are those of exact products."""
    draw = torch.Generator().manual_seed(0)
    q, k = (5 + 0.5 * torch.randn(1, 1, 64, 64, generator=draw).bfloat16() for _ in range(2))
    v = torch.eye(64).bfloat16()[None, None]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_autocast):
        y = crystal_attention(q, k, v, "topk", top_k=2)
    exact = (q.double() @ k.double().mT / 8).masked_fill(~torch.ones(64, 64).tril().bool(), float("-inf"))
    best = exact.topk(2).indices[0, 0, 2:]
    weights = y[0, 0, 2:].float()
    assert (weights.gather(1, best).sum(1) > 0.98).all()


def test_autocast_chooses_in_fp32() -> None:
    given = tensors((2, 3, 23, 23, 8))
    chosen = decompose_attention(**{name: x.bfloat16() for name, x in given.items()})[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = decompose_attention(**{name: x.bfloat16() for name, x in given.items()})[0]
        y = crystal_attention(
            *(x.bfloat16() for x in given.values()), "lowrank", 2, basis=random_basis(3, 8, 2), straight_through=True
        )  # fmt: skip
    assert torch.equal(chosen, again)
    y.float().sum().backward()
    assert all(x.grad.isfinite().all() for x in given.values())


def test_random_bases() -> None:
    basis = random_basis(3, 16, 5, seed=1, layer=2)
    assert basis.shape == (3, 16, 5)
    assert torch.allclose(basis.mT @ basis, torch.eye(5).expand(3, 5, 5), atol=1e-6)
    assert torch.equal(basis, random_basis(3, 16, 9, seed=1, layer=2)[..., :5])
    others = [random_basis(3, 16, 5, seed=1, layer=3), random_basis(3, 16, 5, seed=2, layer=2)]
    for other in [*others, basis.roll(1, 0)]:
        assert (basis.mT @ other).abs().max() < 0.95
    x = torch.randn(3, 4000, 16, generator=torch.Generator().manual_seed(0))
    kept = (x @ basis).square().sum() / x.square().sum()
    assert kept.item() == pytest.approx(5 / 16, rel=0.05)


def test_orthonormal_is_qr_with_a_positive_diagonal() -> None:
    columns = torch.randn(2, 9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q = orthonormal(columns)
    r = q.mT @ columns
    assert torch.allclose(q @ r, columns)
    assert r.tril(-1).abs().max() < 1e-12
    assert (r.diagonal(dim1=-2, dim2=-1) > 0).all()
    assert torch.autograd.gradcheck(orthonormal, columns.requires_grad_())


def test_a_learnt_basis_has_the_gradient_of_its_definition() -> None:
    torch.manual_seed(0)
    core = CrystalAttention(3, 7, "lowrank", rank=2, learn_basis=True)
    with torch.no_grad():
        core.basis.add_(0.3 * torch.randn(core.basis.shape))
    given = tensors((2, 3, 11, 11, 7))
    leaves = [*given.values(), core.basis]
    y = core(**given)
    q, r = torch.linalg.qr(core.basis)
    P = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]
    expected = naive.crystal_attention(**given, mode="lowrank", rank=2, basis=P, straight_through=True)
    assert relative_error(y, expected) <= tolerances.OUTPUT
    for mine, theirs in zip(gradients(y, leaves), gradients(expected, leaves), strict=True):
        assert relative_error(mine, theirs) <= tolerances.GRADIENT


def test_dropout_spares_the_top_key() -> None:
    torch.manual_seed(0)
    given = {name: x.detach() for name, x in tensors((2, 3, 11, 11, 7)).items()}
    basis = random_basis(3, 7, 7)
    top = crystal_attention(**given, mode="top1")
    P = basis[..., 2:]  # directions that rank 2 does not touch
    y = crystal_attention(**given, mode="lowrank", rank=2, basis=basis, dropout=0.5)
    assert relative_error(y @ P, top @ P) <= 1e-5
    assert relative_error(y, crystal_attention(**given, mode="lowrank", rank=2, basis=basis)) > 0.01


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "lowrnk"}, "mode = 'lowrnk': must be one of top1, topk"),
        ({"mode": "topk"}, "top_k = None: mode topk needs a number of keys"),
        ({"mode": "lowrank", "rank": 2}, "basis = None"),
        ({"mode": "random", "rank": 8}, r"rank = 8: mode random needs one from 1 to the head width, 7"),
        ({"mode": "lowrank", "rank": 3, "basis": torch.zeros(3, 7, 2)}, r"basis = \(3, 7, 2\): must be"),
        ({"mode": "top1", "q": torch.zeros(2, 3, 7)}, r"q, k, v = \(2, 3, 7\)"),
        ({"mode": "top1", "q": torch.zeros(2, 3, 24, 7)}, "no more queries than keys"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        crystal_attention(**(tensors((2, 3, 23, 23, 7)) | options))


@pytest.mark.parametrize(("mode", "options"), [("full", {}), ("topk", {"top_k": 70})])
def test_bfloat16_loses_no_more_than_its_digits(mode: Any, options: dict[str, Any]) -> None:
    """Neither to values that cancel, nor to the many queries whose gradients one key adds up."""
    given = {name: x.detach().bfloat16() for name, x in tensors((1, 1, 1000, 1000, 40)).items()}
    narrow = {name: x.clone().requires_grad_() for name, x in given.items()}
    wide = {name: x.float().requires_grad_() for name, x in given.items()}
    found, expected = vectorized.crystal_attention, naive.crystal_attention
    y, wanted = found(**narrow, mode=mode, **options), expected(**wide, mode=mode, **options)
    assert relative_error(y, wanted) <= tolerances.BFLOAT16
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(7)).bfloat16()
    pairs = zip(
        torch.autograd.grad(y, [*narrow.values()], upstream),
        torch.autograd.grad(wanted, [*wide.values()], upstream.float()),
        strict=True,
    )
    for gradient, of_definition in pairs:
        assert relative_error(gradient, of_definition) <= tolerances.BFLOAT16
