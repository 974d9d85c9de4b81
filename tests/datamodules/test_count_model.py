"""What counting predicts, against the formula written out, and what is kept of it."""

import math
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from datamodules import CharDataModule, count_model
from datamodules.count_model import CountModel, chosen, order_for
from tests.support.tiny import write_text


def by_the_formula(train: list[int], vocab_size: int, order: int, context: list[int], token: int) -> Fraction:
    """Witten and Bell's interpolation, one context at a time and in exact numbers."""
    if order < 0:
        return Fraction(1, vocab_size)
    lower = by_the_formula(train, vocab_size, order - 1, context, token)
    if order > len(context):
        return lower
    history = tuple(context[len(context) - order :])
    # Every order is counted from the same place on.
    followed = Counter(train[i] for i in range(HIGHEST, len(train)) if tuple(train[i - order : i]) == history)
    if not followed:
        return lower
    return (followed[token] + len(followed) * lower) / (sum(followed.values()) + len(followed))


HIGHEST = 3


@pytest.mark.parametrize("vocab_size", [2, 5, 300])
def test_every_order_is_the_formula(vocab_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(count_model, "_PIECE", 13)  # pieces are put together
    draw = np.random.default_rng(vocab_size)
    text = draw.integers(0, vocab_size, 90) % 7  # of many numbers few occur
    train, held_out = text[:70].astype(np.uint16), text[70:].astype(np.uint16)
    model = CountModel(train, vocab_size, HIGHEST)
    losses = model.losses(held_out)
    for order in range(HIGHEST + 1):
        probabilities = [
            by_the_formula(train.tolist(), vocab_size, order, held_out[:i].tolist(), int(held_out[i]))
            for i in range(1, len(held_out))
        ]
        assert losses[order] == pytest.approx(
            -sum(map(math.log, probabilities)) / len(probabilities), rel=1e-12
        )
        context = held_out[:5]
        assert model.next_probabilities(context, order) == pytest.approx(
            [
                float(by_the_formula(train.tolist(), vocab_size, order, context.tolist(), w))
                for w in range(vocab_size)
            ]
        )
    assert model.next_probabilities(held_out[:9], HIGHEST).sum() == pytest.approx(1)


def test_noise_cannot_be_predicted() -> None:
    draw = np.random.default_rng(0).integers(0, 5, 60_000).astype(np.uint8)
    model, order = chosen(draw, 5)
    assert model.losses(draw[:20_000])[-1] == pytest.approx(math.log(5), abs=2e-3)
    assert order <= 1


def test_the_order_is_chosen_on_the_end_of_the_training_text() -> None:
    draw = np.random.default_rng(1)
    table = draw.dirichlet(np.full(4, 0.3), size=(4, 4))  # what follows depends on two tokens
    text = [0, 1]
    for number in draw.random(40_000):
        text.append(int(np.searchsorted(table[text[-2], text[-1]].cumsum(), number)))
    tokens = np.array(text, dtype=np.uint8)
    model, order = chosen(tokens[:30_000], 4)
    assert order == 2
    assert model.next_probabilities(tokens[:2], order) == pytest.approx(table[0, 1], abs=0.02)
    pairs = zip(text[30_000:], text[30_001:], text[30_002:], strict=False)
    entropy = -np.mean([math.log(table[triple]) for triple in pairs])
    assert model.losses(tokens[30_000:])[-1] == pytest.approx(entropy, abs=0.01)


def test_samples_follow_the_counts() -> None:
    period = np.array([0, 0, 1, 0, 2, 0, 0, 1, 1, 2], dtype=np.uint8)
    model = CountModel(np.tile(period, 200), 3, 6)
    assert np.array_equal(model.sample(period[:6], 24, 6, temperature=0.1, seed=0), np.tile(period, 3))
    first, again, other = (model.sample(period[:4], 200, 1, 1.0, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(("n_tokens", "order"), [(0, 0), (3, 1), (1000, 6), (16 << 20, 6), (16 << 21, 0)])
def test_a_text_too_large_to_count_in_seconds_is_counted_by_single_tokens(n_tokens: int, order: int) -> None:
    assert order_for(n_tokens) == order


def test_a_tiny_text_is_counted(tmp_path: Path) -> None:
    for length in (2, 3, 30):
        model, order = chosen(np.zeros(length, dtype=np.uint8), 4)
        assert np.isfinite(model.losses(np.zeros(5, dtype=np.uint8))[order])


def test_it_is_worked_out_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = write_text(tmp_path / "text.txt", n_words=600)

    def data() -> CharDataModule:
        return CharDataModule(
            path=str(text), block_size=16, test_fraction=0.1, data_dir=str(tmp_path / "data")
        )

    asked = (2, 8, 40, 0.7)
    assert data().count_baseline(*asked, compute=False) is None
    found = data().count_baseline(*asked)
    assert found is not None
    assert found.losses.keys() == {"val", "test"}
    assert found.losses["val"] < math.log(data().vocab_size)
    assert found.known_word_share is not None and found.known_word_share > 0.5
    monkeypatch.setattr(count_model, "chosen", None)
    assert data().count_baseline(*asked) == found
    (file,) = (tmp_path / "data" / "baselines").iterdir()
    file.write_text("{")
    assert data().count_baseline(*asked, compute=False) is None
    text.write_text(text.read_text() + "more")
    assert data().count_baseline(*asked, compute=False) is None
