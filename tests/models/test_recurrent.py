"""Reading one token at a time gives what reading the whole text gives, and generation is the same either way."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from app.models import LanguageModel
from app.models.generation import generate, generation_window
from app.models.gpt import GPT
from app.models.tilelli import BankRouting, TilelliLM
from app.models.tilelli.weights import QuantisedWeight
from tests import tolerances
from tests.parity import relative_error

VOCABULARY = 23
BLOCK_SIZE = 16


def tilelli(**options: Any) -> TilelliLM:
    torch.manual_seed(11)
    arguments = {"n_layers": 2, "d_head": 4, "wide_kernel_size": 7, "top_k": 3} | options
    network = TilelliLM(VOCABULARY, 12, **arguments).eval()
    with torch.no_grad():
        for block in network.tilelli_blocks:
            block.state.decay_logit[:, ::2].neg_()  # a state may alternate in sign
    for buffer in network.running_state():
        buffer.normal_(std=0.02)  # as training leaves it: it decides some of the banks
    return network


def gpt(bias: bool = False) -> GPT:
    torch.manual_seed(12)
    network = GPT(VOCABULARY, BLOCK_SIZE, 2, 2, 12, bias=bias).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(8)  # away from uniform predictions
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))  # a bias starts at zero
    return network


def tokens(n_rows: int, n_tokens: int) -> Tensor:
    return torch.randint(0, VOCABULARY, (n_rows, n_tokens), generator=torch.Generator().manual_seed(13))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"n_banks": 3},
    {"n_banks": 3, "pathways": 3, "quantize": False, "state_init": "unit"},
    {"n_banks": 2, "lsq": True, "hadamard": True, "path_norm": True, "state_init": "unit"},
    {"n_banks": 3, "per_row": True, "top_k_routing": 4, "bank_gate": "bank", "fp_attention": True},
    {"n_banks": 3, "balance": "bias", "top_k_routing": 5, "state_init": "unit"},
    {"hadamard": True, "per_row": True, "top_k_routing": 2, "kernel_size": 1, "top_k": 40},
    {"n_banks": 2, "position": "learned", "block_size": 4 * BLOCK_SIZE, "path_norm": True},
]


@pytest.mark.parametrize("n_rows", [1, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@torch.no_grad()
def test_every_step_equals_the_full_forward(options: dict[str, Any], n_rows: int) -> None:
    network, idx = tilelli(**options), tokens(n_rows, 4 * BLOCK_SIZE)
    expected = network(idx).logits
    for n_prompt in (1, 29):
        logits, cache = network.prefill(idx[:, :n_prompt])
        read = [logits, *(network.step(idx[:, t], cache) for t in range(n_prompt, idx.shape[1]))]
        for t, logits in enumerate(read, n_prompt - 1):
            assert relative_error(logits, expected[:, t]) <= tolerances.OUTPUT, t


@pytest.mark.parametrize("n_rows", [1, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@torch.no_grad()
def test_a_step_decides_as_the_full_forward_does(options: dict[str, Any], n_rows: int) -> None:
    network, idx = tilelli(**options), tokens(n_rows, 12)
    expected = network(idx).routing[1]
    decided: list[BankRouting] = []
    network.blocks[1].register_forward_hook(lambda block, inputs, output: decided.append(output[1]))
    _, cache = network.prefill(idx[:, :5])
    for t in range(5, 12):
        network.step(idx[:, t], cache)
    assert len(decided) == 8
    for name in ("pathway_weights", "router_weights"):
        found = torch.cat([getattr(routing, name) for routing in decided], 1)
        assert relative_error(found, getattr(expected, name)) <= tolerances.OUTPUT, name
    assert torch.equal(torch.cat([routing.bank_index for routing in decided], 1), expected.bank_index)


@torch.no_grad()
def test_the_room_for_keys_grows() -> None:
    network, idx = tilelli(n_banks=2), tokens(2, 300)
    _, cache = network.prefill(idx[:, :3])
    for t in range(3, 300):
        logits = network.step(idx[:, t], cache)
    assert relative_error(logits, network(idx).logits[:, -1]) <= tolerances.OUTPUT


@torch.no_grad()
def test_weights_are_formed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network, idx = tilelli(n_banks=2), tokens(2, 9)
    formed: list[QuantisedWeight] = []
    form = QuantisedWeight.effective_weight
    monkeypatch.setattr(QuantisedWeight, "effective_weight", lambda w: formed.append(w) or form(w))
    _, cache = network.prefill(idx)
    assert formed
    formed.clear()
    for _ in range(3):
        network.step(idx[:, 0], cache)
    assert not formed


def text_of(network: LanguageModel, *, cached: bool, n_rows: int, **options: Any) -> Tensor:
    network = copy.deepcopy(network)
    network.can_step = cached
    generator = torch.Generator().manual_seed(14)
    steps = generate(network, tokens(n_rows, 5), generator=generator, **options)
    return torch.stack(list(steps), 1)


@pytest.mark.parametrize(
    ("n_rows", "sampling"), [(1, {"temperature": 0.0}), (3, {"top_k": 4}), (2, {"top_p": 0.8})], ids=str
)
@pytest.mark.parametrize(
    ("make", "n_tokens", "block_size"),
    [
        (lambda: gpt(bias=True), 11, None),
        (gpt, 4 * BLOCK_SIZE, None),
        (gpt, 40, 9),
        (tilelli, 4 * BLOCK_SIZE, None),
        (lambda: tilelli(n_banks=3), 4 * BLOCK_SIZE, None),
        (lambda: tilelli(n_banks=3, lsq=True, hadamard=True, path_norm=True), 4 * BLOCK_SIZE, None),
        (lambda: tilelli(n_banks=3, top_k_routing=4, balance="bias"), 30, BLOCK_SIZE),
        (lambda: tilelli(n_banks=2, position="learned", block_size=BLOCK_SIZE), 11, None),
        (lambda: tilelli(n_banks=2, position="learned", block_size=BLOCK_SIZE), 4 * BLOCK_SIZE, None),
    ],
    ids=[
        "gpt",
        "gpt refilled",
        "gpt window",
        "tilelli",
        "tilelli banks",
        "tilelli options",
        "tilelli window",
        "tilelli positions",
        "tilelli positions refilled",
    ],
)
def test_cached_text_is_the_uncached_one(
    make: Callable[[], LanguageModel],
    n_tokens: int,
    block_size: int | None,
    n_rows: int,
    sampling: dict[str, Any],
) -> None:
    network = make()
    options = {"n_rows": n_rows, "max_new_tokens": n_tokens, "block_size": block_size, **sampling}
    cached = text_of(network, cached=True, **options)
    assert torch.equal(cached, text_of(network, cached=False, **options))
    assert len(cached.unique()) > 1


@torch.no_grad()
def test_samples_come_from_exactly_k_candidates() -> None:
    network, prompt = tilelli(n_banks=3), tokens(1, 8).expand(400, -1)
    drawn = next(generate(network, prompt, 1, top_k=5, generator=torch.Generator().manual_seed(1)))
    likeliest = network(prompt[:1]).logits[0, -1].topk(5).indices
    assert torch.equal(drawn.unique(), likeliest.sort().values)


def test_only_a_network_that_needs_a_window_gets_one() -> None:
    no_steps = tilelli()
    no_steps.can_step = False
    assert generation_window(tilelli(), 8) is None
    assert generation_window(no_steps, 8) == 8
    assert generation_window(gpt(), 8) == 8
    assert generation_window(tilelli(position="learned", block_size=BLOCK_SIZE), BLOCK_SIZE) == BLOCK_SIZE
