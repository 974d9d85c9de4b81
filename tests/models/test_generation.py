"""Generation, with a network whose probabilities are known."""

from typing import Any

import pytest
import torch
from torch import Tensor

from app.models import LanguageModel, LanguageModelOutput
from app.models.generation import first_of_race, generate, seeded
from app.models.gpt import GPT
from app.models.tilelli import TilelliLM


class Fixed(LanguageModel):
    """Predicts the same distribution always, and remembers what it read."""

    def __init__(self, probabilities: list[float], max_context: int | None = None):
        super().__init__()
        self.logits = torch.tensor(probabilities).log()
        self.max_context = max_context
        self.read: list[Tensor] = []
        self.was_training: list[bool] = []

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> LanguageModelOutput:
        self.read.append(idx)
        self.was_training.append(self.training)
        logits = self.logits.expand(*idx.shape, -1)
        return LanguageModelOutput(logits, None, torch.zeros(()), [])


def sample(network: LanguageModel, n: int = 1, rows: int = 2000, **options: Any) -> Tensor:
    generator = torch.Generator().manual_seed(options.pop("seed", 0))
    steps = generate(network, torch.zeros(rows, 1, dtype=torch.int64), n, generator=generator, **options)
    return torch.stack(list(steps), 1)


def test_greedy_takes_the_likeliest() -> None:
    assert sample(Fixed([0.2, 0.5, 0.3]), temperature=0.0).eq(1).all()


def test_sampling_follows_the_probabilities() -> None:
    tokens = sample(Fixed([0.1, 0.6, 0.3]), rows=20_000)
    shares = torch.bincount(tokens.flatten(), minlength=3) / tokens.numel()
    assert shares.tolist() == pytest.approx([0.1, 0.6, 0.3], abs=0.02)


def test_temperature_sharpens() -> None:
    shares = sample(Fixed([0.2, 0.8]), temperature=0.5, rows=20_000).float().mean()
    assert shares.item() == pytest.approx(0.64 / 0.68, abs=0.02)


@pytest.mark.parametrize("temperature", [1e-3, 1e-39, 1e-300])
def test_the_smallest_temperatures_leave_the_likeliest_and_its_equals(temperature: float) -> None:
    assert sample(Fixed([0.2, 0.4, 0.4]), temperature=temperature).unique().tolist() == [1, 2]


@pytest.mark.parametrize("top_k", [1, 3, 6, 50, 1 << 70])
def test_top_k_keeps_exactly_k_even_of_equals(top_k: int) -> None:
    tokens = sample(Fixed([0.15] * 6 + [0.1]), top_k=top_k)
    assert tokens.unique().tolist() == list(range(min(top_k, 7)))


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(1e-300, [2]), (0.05, [2]), (0.5, [2]), (0.55, [2, 1]), (0.85, [2, 1, 0]), (1.0, [2, 1, 0, 3])],
)
def test_top_p_keeps_the_smallest_sufficient_set(top_p: float, kept: list[int]) -> None:
    tokens = sample(Fixed([0.125, 0.25, 0.5, 0.125]), top_p=top_p)
    assert tokens.unique().tolist() == sorted(kept)


def test_top_k_comes_before_top_p() -> None:
    # Among the two kept by top_k the first has 2/3 of the probability.
    assert sample(Fixed([0.25, 0.25, 0.5]), top_k=2, top_p=0.6).eq(2).all()


def test_the_seed_decides() -> None:
    network = Fixed([0.3, 0.4, 0.3])
    first = sample(network, n=20, rows=3, seed=1)
    assert torch.equal(first, sample(network, n=20, rows=3, seed=1))
    assert not torch.equal(first, sample(network, n=20, rows=3, seed=2))


@pytest.mark.parametrize(("own", "asked"), [(6, None), (None, 6), (9, 6)])
def test_a_full_window_goes_on_from_its_second_half(own: int | None, asked: int | None) -> None:
    network = Fixed([0.5, 0.5], max_context=own)
    prompt = torch.tensor([[1, 0, 1, 1]])
    tokens = torch.stack(list(generate(network, prompt, 9, block_size=asked)), 1)
    assert [idx.shape[1] for idx in network.read] == [4, 5, 6, 3, 4, 5, 6, 3, 4]
    text = torch.cat([prompt, tokens], 1)
    for step, idx in enumerate(network.read):
        assert torch.equal(idx, text[:, 4 + step - idx.shape[1] : 4 + step])


def test_a_prompt_beyond_the_window_is_cut() -> None:
    network = Fixed([0.5, 0.5])
    list(generate(network, torch.ones(1, 11, dtype=torch.int64), 1, block_size=8))
    assert network.read[0].shape[1] == 4


def test_no_limit_keeps_the_whole_context() -> None:
    network = Fixed([0.5, 0.5])
    list(generate(network, torch.ones(1, 2, dtype=torch.int64), 5))
    assert [idx.shape[1] for idx in network.read] == [2, 3, 4, 5, 6]


def test_evaluation_mode_during_generation_only() -> None:
    network = Fixed([0.5, 0.5]).train()
    steps = generate(network, torch.zeros(1, 1, dtype=torch.int64), 3)
    next(steps)
    steps.close()  # a reader that stops early
    assert network.training
    assert network.was_training == [False]
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    "network",
    [lambda: GPT(11, 8, 1, 2, 8), lambda: TilelliLM(11, 8, 1, d_head=4, n_banks=2)],
    ids=["gpt", "tilelli"],
)
def test_real_networks_generate(network: Any) -> None:
    torch.manual_seed(0)
    model = network()
    prompt = torch.randint(0, 11, (2, 3))
    tokens = torch.stack(list(generate(model, prompt, 4, temperature=0)), 1)
    text = torch.cat([prompt, tokens], 1)
    expected = model(text[:, :-1]).logits[:, 2:].argmax(-1)
    assert torch.equal(tokens, expected)
    generator = seeded((1 << 64) - 1, "cpu")
    options: dict[str, Any] = {
        "temperature": 1e308,
        "top_k": 1 << 70,
        "top_p": 1e-300,
        "generator": generator,
    }
    assert len(list(generate(model, prompt, 4, **options))) == 4  # the ends of every range


def test_no_number_of_tokens_is_too_large() -> None:
    assert next(generate(Fixed([1.0]), torch.zeros(1, 1, dtype=torch.int64), 10**30)).item() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature = -1.0"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"temperature": float("inf")}, "temperature = inf: must be finite"),
        ({"top_k": 0}, "top_k = 0"),
        ({"top_p": 0.0}, "top_p = 0.0"),
        ({"top_p": float("nan")}, "top_p = nan"),
        ({"block_size": 0}, "block_size = 0"),
        ({"block_size": 9}, "at most 8"),
        ({"max_new_tokens": -1}, "max_new_tokens = -1"),
    ],
)
def test_mistakes_are_named_before_the_first_step(options: dict[str, Any], message: str) -> None:
    arguments = {"max_new_tokens": 1} | options
    with pytest.raises(ValueError, match=message):
        generate(Fixed([1.0], max_context=8), torch.zeros(1, 1, dtype=torch.int64), **arguments)


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_a_seed_out_of_range(seed: int) -> None:
    with pytest.raises(ValueError, match=f"seed = {seed}: must be at least 0 and below 2"):
        seeded(seed, "cpu")


def test_an_empty_prompt_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        generate(Fixed([1.0]), torch.zeros(1, 0, dtype=torch.int64), 1)


def test_a_race_is_won_by_what_multinomial_draws() -> None:
    for seed in range(200):
        torch.manual_seed(seed)
        probabilities = (3 * torch.randn(1 + seed % 3, 5 + seed % 60)).softmax(-1)
        if seed % 4 == 0:
            probabilities[:, 3:] = 0
        ours, theirs = (torch.Generator().manual_seed(seed) for _ in range(2))
        expected = torch.multinomial(probabilities, 1, generator=theirs)
        assert torch.equal(first_of_race(probabilities, ours), expected)
        assert torch.equal(ours.get_state(), theirs.get_state())
