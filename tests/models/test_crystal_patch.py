"""The attention of a trained network, exchanged for a while."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from app.models.crystal import CrystalPatch, attention_layers, calibrate, deepest_quarter, head_shape
from app.models.crystal.patch import ReadAttention, exchanged
from app.models.equilibrium import EquilibriumLM
from app.models.gpt import GPT
from app.models.local_gpt import LocalGPT, LocalGPTConfig
from app.models.tilelli import TilelliLM
from tests import tolerances
from tests.parity import relative_error


def small_network() -> GPT:
    torch.manual_seed(0)
    network = GPT(11, 16, n_layers=3, n_heads=2, d_model=12)
    with torch.no_grad():  # scores far from equal, as in a trained network
        for parameter in network.parameters():
            parameter.mul_(6)
    return network


IDX = torch.randint(0, 11, (3, 16), generator=torch.Generator().manual_seed(1))


def logits(network: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = network(IDX).logits
    return found


def test_full_equals_the_network_and_the_rest_differs() -> None:
    network = small_network()
    own = logits(network)
    basis = calibrate(network, [1, 2], [IDX])
    forms: list[tuple[Any, dict[str, Any]]] = [
        ("top1", {}), ("topk", {"top_k": 2}), ("lowrank", {"rank": 2, "basis": basis}), ("random", {"rank": 2}),
    ]  # fmt: skip
    with CrystalPatch(network, [1, 2], "full"):
        assert relative_error(logits(network), own) <= tolerances.OUTPUT
    with CrystalPatch(network, [1, 2], "lowrank", 6, basis=basis):
        assert relative_error(logits(network), own) <= tolerances.OUTPUT
    with CrystalPatch(network, [1, 2], "topk", top_k=16):
        assert relative_error(logits(network), own) <= tolerances.OUTPUT
    for mode, options in forms:
        with CrystalPatch(network, [1, 2], mode, **options):
            assert relative_error(logits(network), own) > 1e-3, mode
        assert torch.equal(logits(network), own)


def test_steps_from_a_cache_are_patched_too() -> None:
    network = small_network().eval()
    with CrystalPatch(network, [0, 2], "topk", top_k=2), torch.no_grad():
        whole = network(IDX).logits
        first, cache = network.prefill(IDX[:, :9])
        assert relative_error(first, whole[:, 8]) <= tolerances.OUTPUT
        for t in range(9, 16):
            assert relative_error(network.step(IDX[:, t], cache), whole[:, t]) <= tolerances.OUTPUT


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_is_restored_after_an_exception(error: type[BaseException]) -> None:
    network = small_network()
    own, state = logits(network), {name: x.clone() for name, x in network.state_dict().items()}
    cores = [layer.core for layer in attention_layers(network)]

    def stop_midway() -> None:
        with CrystalPatch(network, [0, 1], "top1"):
            assert list(network.state_dict()) == list(state)
            with CrystalPatch(network, [1, 2], "full"):
                logits(network)
                raise error("in the middle")

    with pytest.raises(error, match="in the middle"):
        stop_midway()
    assert all(layer.core is core for layer, core in zip(attention_layers(network), cores, strict=True))
    assert torch.equal(logits(network), own)
    assert all(torch.equal(x, state[name]) for name, x in network.state_dict().items())


def test_patches_may_end_in_any_order() -> None:
    network = small_network()
    own, cores = logits(network), [layer.core for layer in attention_layers(network)]
    first, second = CrystalPatch(network, [0, 1], "top1"), CrystalPatch(network, [1, 2], "full")
    with second:
        of_second = logits(network)
    first.__enter__()
    with pytest.raises(RuntimeError, match="in force already"), first:
        raise AssertionError("was entered twice")
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.equal(logits(network), of_second)
    second.__exit__(None, None, None)
    assert all(layer.core is core for layer, core in zip(attention_layers(network), cores, strict=True))
    assert torch.equal(logits(network), own)
    with first:  # can be used again
        assert not torch.equal(logits(network), own)
    assert torch.equal(logits(network), own)


def test_layers_keep_their_numbers_while_one_is_read() -> None:
    network = small_network()
    layers = attention_layers(network)
    with exchanged(network, {0: ReadAttention(lambda *given: None)}):
        assert attention_layers(network) == layers
        assert head_shape(network, 2) == (2, 6)


def test_is_restored_after_an_exception_inside_the_network() -> None:
    network = small_network().train()
    cores = [layer.core for layer in attention_layers(network)]
    for call in (
        lambda: calibrate(network, [0, 1], [IDX, torch.full((1, 16), 99)]),  # no such token
        lambda: calibrate(network, [0], [IDX[:1, :3]]),  # too few of them
    ):
        with pytest.raises((IndexError, ValueError)):
            call()
        assert all(layer.core is core for layer, core in zip(attention_layers(network), cores, strict=True))
        assert all(module.training for module in network.modules())


@pytest.mark.parametrize(
    ("layers", "options", "said"),
    [
        ([3], {"mode": "top1"}, r"layer = 3: GPT has attention layers 0 … 2"),
        ([-1], {"mode": "top1"}, r"layer = -1"),
        ([0], {"mode": "lowrank", "rank": 7}, r"rank = 7: must lie in 1 … 6, the head width of layer 0"),
        ([0], {"mode": "random", "rank": 0}, r"rank = 0"),
        ([0], {"mode": "lowrank", "rank": 2}, r"basis = None"),
        (
            [0],
            {"mode": "lowrank", "rank": 2, "basis": {1: torch.eye(6).expand(2, 6, 6)}},
            r"nothing for layer 0",
        ),
        (
            [0],
            {"mode": "lowrank", "rank": 2, "basis": {0: torch.eye(6).expand(3, 6, 6)}},
            r"layer 0 needs \(2, 6, 2",
        ),
        ([0], {"mode": "topk"}, r"top_k = None"),
        ([0], {"mode": "top2"}, r"mode = 'top2'"),
    ],
)
def test_mistakes_are_named_and_leave_no_trace(layers: list[int], options: dict[str, Any], said: str) -> None:
    network = small_network()
    cores = [layer.core for layer in attention_layers(network)]
    with pytest.raises(ValueError, match=said), CrystalPatch(network, layers, **options):
        raise AssertionError("was entered")
    assert all(layer.core is core for layer, core in zip(attention_layers(network), cores, strict=True))


def test_other_architectures_are_refused() -> None:
    with pytest.raises(ValueError, match="TilelliLM: has no softmax attention"):
        attention_layers(TilelliLM(11, d_model=8, n_layers=1))


@pytest.mark.parametrize("kind", ["LocalGPT", "EquilibriumLM"])
def test_the_other_softmax_networks(kind: str) -> None:
    torch.manual_seed(0)
    network: nn.Module
    if kind == "LocalGPT":
        network = LocalGPT(
            LocalGPTConfig(
                vocab_size=11, block_size=16, n_layers=3, n_heads=2, d_model=12, attn_mode="softmax"
            )
        )
    else:
        network = EquilibriumLM(11, block_size=16, d_model=12, n_heads=2, n_layers=3, d_ff=24)
    network.eval()
    own = logits(network)
    basis = calibrate(network, [1, 2], [IDX])
    for options in ({"mode": "full"}, {"mode": "lowrank", "rank": 6, "basis": basis}):
        with CrystalPatch(network, [1, 2], **options):
            assert relative_error(logits(network), own) <= tolerances.OUTPUT
    with CrystalPatch(network, [1, 2], "top1"):
        assert relative_error(logits(network), own) > 1e-4
    assert torch.equal(logits(network), own)


def test_sigmoid_attention_is_refused() -> None:
    network = LocalGPT(LocalGPTConfig(vocab_size=11, block_size=16, n_layers=1, n_heads=2, d_model=12))
    with pytest.raises(ValueError, match="layer = 0: its attention is SigmoidAttention, not softmax"):
        head_shape(network, 0)


def test_layers_are_found() -> None:
    network = small_network()
    assert attention_layers(network) == [block.attn for block in network.blocks]
    assert head_shape(network, 1) == (2, 6)
    assert [deepest_quarter(n) for n in (1, 3, 4, 8, 12)] == [[0], [2], [3], [6, 7], [9, 10, 11]]
