"""Inference without a gradient: equal to the forward, but for the pathways that it may leave out."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from app.models.tilelli import (
    DiagonalSSM,
    SparseCausalAttention,
    TernaryCausalConv1d,
    TernaryFFN,
    TernaryLinear,
    TilelliBlock,
)
from tests import tolerances
from tests.models.tilelli_cases import OPTIONS, WIDTH, batch, small_network
from tests.parity import relative_error


def block_and_input(**options: Any) -> tuple[TilelliBlock, Tensor]:
    """A block whose pathways are far apart in weight."""
    torch.manual_seed(0)
    block = TilelliBlock(WIDTH, d_head=4, wide_kernel_size=7, **options).eval()
    with torch.no_grad():
        block.router.weight.mul_(2)
    return block, torch.randn(2, 9, WIDTH)


def calls(module: nn.Module) -> Counter[str]:
    """Counts, from now on, how often each child is called."""
    counter: Counter[str] = Counter()
    for name, child in module.named_children():
        child.register_forward_hook(lambda child, inputs, output, name=name: counter.update([name]))
    return counter


@pytest.mark.parametrize("skip_mode", ["per_call", "per_token"])
@pytest.mark.parametrize("options", [{"n_banks": n} | o for n in (1, 3) for o in [{}, *OPTIONS]], ids=str)
def test_inference_that_skips_nothing_is_the_forward(options: dict[str, Any], skip_mode: str) -> None:
    network = small_network(**options, skip_threshold=0.0, skip_mode=skip_mode, dropout=0.5, router_noise=0.5)
    idx, _ = batch()
    inferred = network.infer(idx)  # in training mode: no dropout, no noise, nothing counted
    assert not inferred.requires_grad
    assert not any(total.any() for total in network.step_sums())
    assert torch.equal(inferred, network.eval()(idx).logits)


@pytest.mark.parametrize("options", [{}, {"n_banks": 3}, {"n_banks": 3, "top_k_routing": 4}], ids=str)
def test_per_call_leaves_out_pathways_that_no_token_needs(options: dict[str, Any]) -> None:
    block, x = block_and_input(**options)
    _, routing = block(x)
    largest = routing.pathway_weights.amax((0, 1))
    threshold = largest.sort().values[1:3].mean().item()  # two of five stay below
    block.skip_threshold = threshold
    kept = [name for p, name in enumerate(block.pathway_names) if largest[p] >= threshold]
    counter = calls(block)
    y = block.infer(x)
    assert {name for name in block.pathway_names if counter[name]} == set(kept)
    assert len(kept) == 3
    h, expected = block.norm(x), x.clone()
    for p, name in enumerate(block.pathway_names):
        if name in kept:
            output = getattr(block, name)(h, routing.bank_index[..., p])
            expected = expected + routing.pathway_weights[..., p, None] * output
    assert relative_error(y, expected) <= tolerances.OUTPUT


@pytest.mark.parametrize("options", [{}, {"n_banks": 3}, {"n_banks": 3, "top_k_routing": 4}], ids=str)
def test_per_token_leaves_out_weights_where_they_are_small(options: dict[str, Any]) -> None:
    block, x = block_and_input(**options, skip_mode="per_token")
    _, routing = block(x)
    weights = routing.pathway_weights
    block.skip_threshold = threshold = (
        weights.amax((0, 1)).min().item() * 1.01
    )  # one pathway is below everywhere
    below = weights < threshold
    assert 0 < below.sum() < below.numel()
    counter = calls(block)
    y = block.infer(x)
    assert [counter[name] == 0 for name in block.pathway_names] == below.all(1).all(0).tolist()
    h, expected = block.norm(x), x.clone()
    for p, name in enumerate(block.pathway_names):
        output = getattr(block, name)(h, routing.bank_index[..., p])
        expected = expected + weights[..., p, None].masked_fill(below[..., p, None], 0) * output
    assert relative_error(y, expected) <= tolerances.OUTPUT


def test_a_threshold_of_one_leaves_only_the_residual_stream() -> None:
    block, x = block_and_input(skip_threshold=1.0)
    counter = calls(block)
    assert torch.equal(block.infer(x), x)
    assert set(counter) == {"norm", "router"}


def test_a_weight_at_the_threshold_is_not_skipped() -> None:
    block, x = block_and_input(skip_threshold=0.25, top_k_routing=4)
    torch.nn.init.zeros_(block.router.weight)
    counter = calls(block)
    block.infer(x)
    assert {name for name in block.pathway_names if counter[name]} == {"local", "wide", "state", "sparse"}


def test_inference_does_not_see_the_future_but_for_what_a_whole_call_needs() -> None:
    network = small_network(n_banks=3, skip_threshold=0.15, skip_mode="per_token").eval()
    idx, _ = batch()
    changed = idx.clone()
    changed[:, 21:] = (changed[:, 21:] + 1) % 17
    assert relative_error(network.infer(changed)[:, :21], network.infer(idx)[:, :21]) <= 1e-6


@pytest.mark.parametrize(
    "part",
    [
        TernaryCausalConv1d(WIDTH, 5, n_banks=2),
        DiagonalSSM(WIDTH, n_banks=2),
        SparseCausalAttention(WIDTH, d_head=4, n_banks=2),
        TernaryFFN(WIDTH, n_banks=2),
    ],
    ids=lambda part: type(part).__name__,
)
def test_every_pathway_infers(part: nn.Module) -> None:
    h = torch.randn(2, 9, WIDTH)
    bank = torch.randint(0, 2, (2, 9))
    y = part.infer(h, bank)
    assert not y.requires_grad
    assert torch.equal(y, part(h, bank))
    assert torch.equal(part.infer(h), part(h, torch.zeros_like(bank)))


def test_a_linear_layer_infers() -> None:
    linear, x = TernaryLinear(WIDTH, 3), torch.randn(2, WIDTH)
    y = linear.infer(x)
    assert not y.requires_grad
    assert torch.equal(y, linear(x))
