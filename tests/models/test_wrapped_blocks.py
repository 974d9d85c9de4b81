"""A block inside of a wrapper, as ``torch.compile`` or FSDP would put it there, changes nothing."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from app.models import LanguageModel
from app.models.crystal import CrystalGPT
from app.models.equilibrium import EquilibriumLM
from app.models.generation import generate
from app.models.gpt import GPT
from app.models.local_gpt import LocalGPT
from app.models.tilelli import TilelliLM

VOCABULARY, BLOCK_SIZE, N_LAYERS = 23, 24, 3


class Wrapper(nn.Module):
    """Knows of its block that it can be called."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.inner = block

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


def gpt(**options: Any) -> GPT:
    return GPT(VOCABULARY, BLOCK_SIZE, N_LAYERS, 2, 12, dropout=0.2, **options)


def crystal(**options: Any) -> CrystalGPT:
    return CrystalGPT(VOCABULARY, BLOCK_SIZE, N_LAYERS, 2, 12, dropout=0.2, **options)


def local_gpt(**options: Any) -> LocalGPT:
    sizes = {"n_layers": N_LAYERS, "n_heads": 2, "d_model": 12}
    return LocalGPT(vocab_size=VOCABULARY, block_size=BLOCK_SIZE, dropout=0.2, **sizes, **options)


def equilibrium(**options: Any) -> EquilibriumLM:
    return EquilibriumLM(
        VOCABULARY, BLOCK_SIZE, 12, 2, N_LAYERS, 20, dropout=0.2, plastic_hidden=5, warmup_steps=1, **options
    )


def tilelli(**options: Any) -> TilelliLM:
    return TilelliLM(VOCABULARY, 12, N_LAYERS, dropout=0.2, d_head=4, wide_kernel_size=7, top_k=3, **options)


NETWORKS: dict[str, Callable[[], LanguageModel]] = {
    "gpt": gpt,
    "gpt, biases": lambda: gpt(bias=True),
    "crystal": lambda: crystal(learn_basis=True),
    "crystal, some layers": lambda: crystal(mode="topk", crystal_layers=[0, 2]),
    "local_gpt": lambda: local_gpt(attn_mode="softmax", vq_codes=5, resid_topk=7),
    "local_gpt, fa": lambda: local_gpt(
        method="fa", fa_grape=True, gated_blocks=True, attn_mode="sigmoid", sigmoid_bias_mode="learned"
    ),
    "local_gpt, dfa": lambda: local_gpt(method="dfa", dfa_derivative=True, gated_blocks=True, mlp_topk=9),
    "equilibrium": lambda: equilibrium(),
    "equilibrium, improved": lambda: equilibrium(
        statistics="lagged",
        standardize=True,
        soft="ordinal",
        shared_router=False,
        reprocess_context=True,
        quantile="histogram",
        capacity_factor=0.8,
        activation_checkpointing=True,
    ),
    "tilelli": lambda: tilelli(),
    "tilelli, banks": lambda: tilelli(
        n_banks=3,
        balance="bias",
        router_noise=0.3,
        top_k_routing=4,
        bank_gate="bank",
        router_z_loss=0.1,
        lsq=True,
    ),
    "tilelli, banks and skips": lambda: tilelli(
        n_banks=3, pathways=3, skip_threshold=0.3, skip_mode="per_token", path_norm=True, balance="switch"
    ),
}


def network(name: str) -> LanguageModel:
    """Away from its initialisation, where layers and banks would hardly differ."""
    torch.manual_seed(11)
    found = NETWORKS[name]()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return found


def wrapped(plain: LanguageModel, layers: tuple[int, ...]) -> LanguageModel:
    found = copy.deepcopy(plain)
    blocks: Any = found.blocks
    for layer in layers:
        blocks[layer] = Wrapper(blocks[layer])
    return found


def tokens(n_rows: int, n_tokens: int, seed: int = 13) -> Tensor:
    return torch.randint(0, VOCABULARY, (n_rows, n_tokens), generator=torch.Generator().manual_seed(seed))


def tensors(found: Any) -> Iterator[Tensor]:
    """All that a record, a measure or a mapping of them holds."""
    if isinstance(found, Tensor):
        yield found.detach()
    elif isinstance(found, dict):
        for value in found.values():
            yield from tensors(value)
    elif isinstance(found, list | tuple):
        for value in found:
            yield from tensors(value)
    elif is_dataclass(found):
        yield from tensors(vars(found))


def assert_equal(one: Any, other: Any) -> None:
    ours, theirs = list(tensors(one)), list(tensors(other))
    assert ours
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def trained(found: LanguageModel) -> list[Any]:
    """What two training steps show, and what they leave behind."""
    torch.manual_seed(17)
    optimizer = torch.optim.SGD(found.parameters(), lr=0.1)
    shown: list[Any] = []
    for step in (1, 2):
        output = found(tokens(3, BLOCK_SIZE, step), tokens(3, BLOCK_SIZE, step + 1))
        assert output.loss is not None
        (output.loss + output.aux_loss).backward()
        shown += [tuple(output), dict(found.measures(output)), dict(found.token_measures(output))]
        shown += [found.auxiliary_means(output), found.step_sums()]
        shown += [parameter.grad for parameter in found.parameters()]
        optimizer.step()
        optimizer.zero_grad()
        found.after_optimizer_step(step)
        for total in found.step_sums():
            total.zero_()
    return [*shown, found.running_state(), list(found.state_dict().values())]


@pytest.mark.parametrize("layers", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_training_is_the_same(name: str, layers: tuple[int, ...]) -> None:
    plain = network(name)
    other = wrapped(plain, layers)
    assert plain.flops_per_token(BLOCK_SIZE) == other.flops_per_token(BLOCK_SIZE)
    assert_equal(trained(plain), trained(other))
    assert_equal(
        [group["params"] for group in plain.parameter_groups()],
        [group["params"] for group in other.parameter_groups()],
    )
    ours, theirs = plain.ternary_weights(), other.ternary_weights()
    assert [each.layer for each in ours.values()] == [each.layer for each in theirs.values()]


@pytest.mark.parametrize("layers", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_evaluation_and_generation_are_the_same(name: str, layers: tuple[int, ...]) -> None:
    plain = network(name).eval()
    other = wrapped(plain, layers)
    idx = tokens(2, BLOCK_SIZE)
    shown = []
    for each in (plain, other):
        with each.layer_outputs() as kept:
            output = each(idx)
        assert list(kept) == [f"blocks.{layer}" for layer in range(N_LAYERS)]
        shown.append(
            [
                tuple(output),
                dict(each.measures(output)),
                dict(each.token_measures(output)),
                list(kept.values()),
            ]
        )
    assert_equal(*shown)
    if isinstance(plain, TilelliLM) and isinstance(other, TilelliLM):
        assert torch.equal(plain.infer(idx), other.infer(idx))
    texts = [torch.stack(list(generate(each, idx[:, :5], 30, temperature=0))) for each in (plain, other)]
    assert torch.equal(*texts)
    for n_prompt in (1, 7) if plain.can_step else ():
        (logits, cache), (other_logits, other_cache) = (
            each.prefill(idx[:, :n_prompt]) for each in (plain, other)
        )
        assert torch.equal(logits, other_logits)
        for t in range(n_prompt, BLOCK_SIZE):
            assert torch.equal(plain.step(idx[:, t], cache), other.step(idx[:, t], other_cache)), t


@pytest.mark.parametrize("name", NETWORKS)
def test_a_block_is_called_alike_in_every_place(name: str) -> None:
    """Hooks of a block see training, prompt and step, with ``(B, T, D)`` going in and coming out."""
    found = network(name).eval()
    blocks: Any = found.blocks
    seen: list[tuple[torch.Size, torch.Size]] = []

    def see(block: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        seen.append((inputs[0].shape, (output[0] if isinstance(output, tuple) else output).shape))

    blocks[1].register_forward_hook(see)
    found(tokens(2, 7))
    if found.can_step:
        _, cache = found.prefill(tokens(2, 7))
        found.step(tokens(2, 1)[:, 0], cache)
    width = seen[0][0][-1]
    # A network that cannot step may call a block again in the same pass, for tokens that come back.
    lengths = (7, 7, 1) if found.can_step else (7,)
    assert seen[: len(lengths)] == [((2, n, width), (2, n, width)) for n in lengths]


@pytest.mark.parametrize(
    "name",
    [
        "gpt",
        *(
            pytest.param(name, marks=pytest.mark.stress)
            for name in ("crystal", "local_gpt", "equilibrium", "tilelli, banks")
        ),
    ],
)
def test_a_compiled_block_is_the_same(name: str) -> None:
    """By the compiler's front end alone, which leaves the arithmetic as it is."""
    plain = network(name).eval()
    other = copy.deepcopy(plain)
    blocks: Any = other.blocks
    blocks[1] = torch.compile(blocks[1], backend="eager")
    idx = tokens(2, 9)
    with torch.no_grad():
        assert_equal(tuple(plain(idx)), tuple(other(idx)))
    texts = [torch.stack(list(generate(each, idx, 6, temperature=0))) for each in (plain, other)]
    torch.compiler.reset()
    assert torch.equal(*texts)
