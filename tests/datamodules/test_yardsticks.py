import math

import numpy as np
import pytest

from datamodules import yardsticks


def test_bigram_loss_by_hand() -> None:
    train, validation = np.array([0, 1, 0, 1, 1], dtype=np.uint8), np.array([0, 1, 1, 0], dtype=np.uint8)
    p = {(0, 1): (2 + 1) / (2 + 2), (1, 1): (1 + 1) / (2 + 2), (1, 0): (1 + 1) / (2 + 2)}
    expected = -sum(map(math.log, (p[0, 1], p[1, 1], p[1, 0]))) / 3
    assert yardsticks.bigram_loss(train, validation, 2) == pytest.approx(expected, rel=1e-12)


def test_bigram_of_uniform_noise_is_the_logarithm_of_the_vocabulary() -> None:
    draw = np.random.default_rng(0).integers(0, 5, 60_000).astype(np.uint8)
    assert yardsticks.bigram_loss(draw[:50_000], draw[50_000:], 5) == pytest.approx(math.log(5), abs=2e-3)


def test_no_bigram_for_a_large_vocabulary() -> None:
    assert yardsticks.bigram_loss(np.zeros(9, np.uint16), np.zeros(9, np.uint16), 50_000) is None


def test_words_cut_off_at_the_ends_do_not_count() -> None:
    known = yardsticks.words(["some plain words"])
    assert yardsticks.known_words(["aome plain wordz some wor", "ome, plain"], known) == (3, 2)
    assert yardsticks.known_words(["a b"], known).share is None


def test_share() -> None:
    assert yardsticks.KnownWords(4, 3).share == 0.75
