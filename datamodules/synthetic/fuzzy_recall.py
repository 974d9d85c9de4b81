"""Recall of pairs of words: keys and values of several symbols (Poli et al. 2024, arXiv 2403.17844)."""

from typing import Annotated

import numpy as np

from app.options import PositiveInt, Within
from datamodules.tasks import Drawn, unscored


def fuzzy_recall(
    generator: np.random.Generator,
    *,
    vocab_size: Annotated[int, Within("[8, inf)")] = 16,
    length: Annotated[int, Within("[8, inf)")] = 128,
    n_keys: PositiveInt = 8,
    max_symbols: PositiveInt = 3,
) -> Drawn:
    """Keys of 1 to ``max_symbols`` symbols and values of as many; a key seen before asks for its whole value.

    The lower half of the symbols make keys, of which none begins another, the upper half values. Which key has which
    value is drawn for each window, and values end where the next key begins, which is not asked for::

        input     3 1 12 9  5 11  3 1 12 9  3
        target    . .  . .  .  .  . 12 9 .  .

    Slices: ``place`` of the symbol in the value, from 0.
    """
    half = vocab_size // 2
    keys: list[tuple[int, ...]] = []
    for _ in range(20 * n_keys):
        key = tuple(generator.integers(0, half, int(generator.integers(1, max_symbols + 1))).tolist())
        if len(keys) < n_keys and not any(key[: len(k)] == k[: len(key)] for k in keys):
            keys.append(key)
    values = [
        generator.integers(half, vocab_size, int(generator.integers(1, max_symbols + 1))).tolist()
        for _ in keys
    ]
    inputs, targets, places = np.zeros(length, dtype=np.int64), unscored(length), np.full(length, -1)
    at, seen = 0, set()
    while at < length:
        number = int(generator.integers(len(keys)))
        word, begin = [*keys[number], *values[number]], at + len(keys[number]) - 1
        inputs[at : at + len(word)] = word[: length - at]
        if number in seen:
            asked = np.arange(begin, min(begin + len(values[number]), length))
            targets[asked], places[asked] = values[number][: len(asked)], asked - begin
        seen.add(number)
        at += len(word)
    return Drawn(inputs, targets, {"place": places})
