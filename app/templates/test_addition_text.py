"""The windows of a small text, and what identifies it."""

import torch
from addition_text import AdditionText


def data(n_lines: int = 200) -> AdditionText:
    return AdditionText(n_lines, block_size=16, batch_size=4)


def test_every_line_is_a_sum() -> None:
    corpus = data().check_source()
    for line in corpus.tokenizer.decode(corpus.train).split("\n")[:-1]:  # the last one may be cut
        terms, total = line.split("=")
        assert sum(map(int, terms.split("+"))) == int(total)
    assert len(corpus.train) > 8 * len(corpus.val) > 0


def test_targets_are_the_inputs_one_character_further() -> None:
    x, y = data().training_batch(step=0, micro_step=0)
    assert x.shape == y.shape == (4, 16)
    assert torch.equal(x[:, 1:], y[:, :-1])


def test_the_same_text_has_the_same_fingerprint() -> None:
    assert data().fingerprint == data().fingerprint
    assert data().fingerprint != data(201).fingerprint
