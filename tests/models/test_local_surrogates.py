"""Backward passes written by hand: exact where they claim to be, and what they say where not."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.models.local_gpt import (
    FrozenSubspace,
    LayerNormSTE,
    LayerNormSurrogate,
    VQResidualDirection,
    gelu_ste,
    hard_top_k,
    sigmoid_ste,
    softmax_value_mix,
)
from tests import tolerances
from tests.parity import relative_error


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=dtype, generator=generator)


def gradients(y: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(y, inputs, noise(*y.shape, dtype=y.dtype, seed=9)))


@pytest.mark.parametrize("shape", [(3, 5, 12), (7, 1, 33), (2, 65)])
def test_projected_layer_norm_is_the_exact_one(shape: tuple[int, ...]) -> None:
    layer = LayerNormSurrogate("projected", shape[-1]).double()
    exact = nn.LayerNorm(shape[-1]).double()
    with torch.no_grad():
        for ours, theirs in zip(layer.parameters(), exact.parameters(), strict=True):
            theirs.copy_(ours.copy_(noise(shape[-1], seed=3)))
    x = (3 * noise(*shape) + 1).requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))
    ours = gradients(layer(x), [x, *layer.parameters()])
    theirs = gradients(exact(x), [x, *exact.parameters()])
    assert relative_error(layer(x), exact(x)) <= 1e-12
    for a, b in zip(ours, theirs, strict=True):
        assert relative_error(a, b) <= 1e-9


def test_softmax_value_mix_is_exact() -> None:
    scores, values = noise(2, 3, 7, 5).requires_grad_(), noise(2, 3, 5, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(softmax_value_mix, (scores, values))
    causal = noise(2, 3, 7, 7).masked_fill(torch.ones(7, 7).triu(1).bool(), float("-inf")).requires_grad_()
    values = noise(2, 3, 7, 4, seed=1).requires_grad_()
    ours = gradients(softmax_value_mix(causal, values), [causal, values])
    theirs = gradients(causal.softmax(-1) @ values, [causal, values])
    for a, b in zip(ours, theirs, strict=True):
        assert torch.isfinite(a).all()
        assert relative_error(a, b) <= 1e-9


def test_center_scale_leaves_the_projection_out() -> None:
    x = noise(3, 5, 12).requires_grad_()
    g = noise(3, 5, 12, seed=9)
    (found,) = gradients(LayerNormSurrogate("center_scale")(x), [x])
    sigma = (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    assert relative_error(found, (g - g.mean(-1, keepdim=True)) / sigma) <= 1e-12
    (exact,) = gradients(F.layer_norm(x, (12,)), [x])
    assert relative_error(found, exact) >= 0.1


def test_layer_norm_ste_passes_errors_and_trains_its_affine() -> None:
    layer = LayerNormSTE(12).double()
    with torch.no_grad():
        layer.weight.copy_(noise(12, seed=3))
    x = noise(3, 5, 12).requires_grad_()
    exact = gradients(F.layer_norm(x, (12,), layer.weight, layer.bias), [x, layer.weight, layer.bias])
    found = gradients(layer(x), [x, layer.weight, layer.bias])
    assert torch.equal(found[0], noise(3, 5, 12, seed=9))
    assert relative_error(found[0], exact[0]) >= 0.1
    for a, b in zip(found[1:], exact[1:], strict=True):
        assert relative_error(a, b) <= 1e-12
    assert not any(p.requires_grad for p in LayerNormSTE(12, train_affine=False).parameters())
    layer.rule = "bp"
    assert relative_error(gradients(layer(x), [x])[0], exact[0]) <= 1e-12


@pytest.mark.parametrize(("surrogate", "exact"), [(sigmoid_ste, torch.sigmoid), (gelu_ste, F.gelu)])
def test_straight_through(surrogate: Any, exact: Any) -> None:
    x = noise(4, 9).requires_grad_()
    y = surrogate(x)
    assert torch.equal(y, exact(x))
    assert torch.equal(gradients(y, [x])[0], noise(4, 9, seed=9))


@pytest.mark.parametrize("k", [1, 4, 11, 12])
def test_top_k_keeps_the_largest_magnitudes(k: int) -> None:
    x = noise(3, 5, 12).requires_grad_()
    y = hard_top_k(x, k)
    threshold = x.detach().abs().sort(-1, descending=True).values[..., k - 1 : k]
    kept = x.detach().abs() >= threshold
    assert torch.equal(y, x * kept)
    assert torch.equal(gradients(y, [x])[0], noise(3, 5, 12, seed=9) * kept)


def test_top_k_keeps_exactly_k_of_equals() -> None:
    assert hard_top_k(torch.ones(2, 7), 3).sum(-1).tolist() == [3.0, 3.0]
    assert torch.equal(
        hard_top_k(torch.tensor([[float("inf"), 1.0]]), 1), torch.tensor([[float("inf"), 0.0]])
    )
    for k in (0, 8):
        with pytest.raises(ValueError, match=rf"k = {k}: must lie in \[1, 7\]"):
            hard_top_k(torch.ones(2, 7), k)


def test_a_subspace_is_a_projection() -> None:
    subspace = FrozenSubspace(5, 12)
    assert not subspace.state_dict()
    assert torch.equal(subspace.Q, FrozenSubspace(5, 12).Q)
    torch.testing.assert_close(subspace.Q.T @ subspace.Q, torch.eye(5))
    x = noise(3, 12, dtype=torch.float32).requires_grad_()
    y = subspace(x)
    assert relative_error(subspace(y), y) <= tolerances.OUTPUT
    g = noise(3, 12, dtype=torch.float32, seed=9)
    assert relative_error(gradients(y, [x])[0], subspace(g)) <= tolerances.OUTPUT
    for rank in (0, 12):
        with pytest.raises(ValueError, match=f"rank = {rank}"):
            FrozenSubspace(rank, 12)


def test_codes_give_the_direction_and_the_stream_its_length() -> None:
    quantiser = VQResidualDirection(7, 12)
    assert not quantiser.state_dict()
    assert torch.equal(quantiser.codebook, VQResidualDirection(7, 12).codebook)
    assert not torch.equal(quantiser.codebook, VQResidualDirection(7, 12, seed=42).codebook)
    torch.testing.assert_close(quantiser.codebook.norm(dim=-1), torch.ones(7))
    h = noise(3, 5, 12, dtype=torch.float32).requires_grad_()
    y = quantiser(h)
    torch.testing.assert_close(y.norm(dim=-1), h.norm(dim=-1))
    cosines = F.cosine_similarity(h[..., None, :], quantiser.codebook, dim=-1)
    direction = F.normalize(y, dim=-1)
    assert relative_error(direction, quantiser.codebook[cosines.argmax(-1)]) <= tolerances.OUTPUT
    assert torch.equal(gradients(y, [h])[0], noise(3, 5, 12, dtype=torch.float32, seed=9))
    quantiser.rule = "bp"
    doubled = quantiser.double()
    assert torch.autograd.gradcheck(doubled, (noise(2, 12).requires_grad_(),))
    with pytest.raises(ValueError, match="n_codes = 0"):
        VQResidualDirection(0, 12)


def test_an_unknown_norm_is_named() -> None:
    mode: Any = "centre"
    with pytest.raises(ValueError, match="mode = 'centre'"):
        LayerNormSurrogate(mode)


@pytest.mark.parametrize("shape", [(12,), (3, 12), (2, 3, 12)])
def test_straight_through_norm_of_any_rank(shape: tuple[int, ...]) -> None:
    norm, exact = LayerNormSTE(12).double(), nn.LayerNorm(12).double()
    x, g = torch.randn(2, *shape, dtype=torch.float64)
    x.requires_grad_()
    found = torch.autograd.grad(norm(x), [x, norm.weight, norm.bias], g)
    expected = torch.autograd.grad(exact(x), [exact.weight, exact.bias], g)
    assert torch.equal(found[0], g)
    for ours, theirs in zip(found[1:], expected, strict=True):
        assert relative_error(ours, theirs) <= 1e-12


@pytest.mark.parametrize("make", [LayerNormSTE, lambda D: LayerNormSurrogate("center_scale", D)])
def test_norms_give_the_type_they_take(make: Any) -> None:
    """But where autocast decides, which has every LayerNorm in fp32."""
    norm = make(12)
    x = torch.randn(3, 12).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x).dtype == torch.float32
    narrow = make(12).bfloat16()
    y = narrow(x.requires_grad_())
    assert y.dtype == torch.bfloat16
    assert relative_error(y, norm(x.float())) <= 2**-8
    y.sum().backward()
    assert {t.grad.dtype for t in (x, *narrow.parameters())} == {torch.bfloat16}


@pytest.mark.parametrize("mode", ["projected", "center_scale"])
def test_a_surrogate_without_gain_and_bias(mode: Any) -> None:
    x = torch.randn(3, 12)
    layer = LayerNormSurrogate(mode, 12, elementwise_affine=False)
    assert not list(layer.parameters())
    assert not layer.state_dict()
    assert torch.equal(layer(x), LayerNormSurrogate(mode)(x))
    assert len(list(LayerNormSurrogate(mode, 12).parameters())) == 2
