"""Recall of pairs among symbols that mean nothing (Poli et al. 2024, arXiv 2403.17844)."""

from typing import Annotated

import numpy as np

from app.options import PositiveInt, Probability, Within
from datamodules.tasks import Drawn, unscored


def noisy_recall(
    generator: np.random.Generator,
    *,
    vocab_size: Annotated[int, Within("[5, inf)")] = 32,
    length: Annotated[int, Within("[6, inf)")] = 128,
    n_noise: PositiveInt = 16,
    noise: Probability = 0.2,
) -> Drawn:
    """``in_context_recall`` with noise between the pairs, and never within one.

    The last ``n_noise`` symbols are noise; of the others the lower half are keys. A share ``noise`` of the symbols is
    noise, on average::

        input     3 11 28  5  9 30 30  3 11
        target    .  .  .  .  .  .  . 11  .

    Slices: ``noise`` symbols since the key was seen, a power of two, rounded down; 0 for none.
    """
    n_symbols = vocab_size - n_noise
    if n_symbols < 4:
        raise ValueError(f"n_noise = {n_noise} needs vocab_size >= {n_noise + 4}, not {vocab_size}")
    value_of = generator.integers(n_symbols // 2, n_symbols, n_symbols // 2)
    # Of the places at which a pair or a noise symbol may begin, so many are noise that it is that share of symbols.
    chance = 2 * noise / (1 + noise)
    inputs = generator.integers(n_symbols, vocab_size, length)
    targets, since, at, n_seen, last = unscored(length), np.full(length, -1), 0, 0, dict[int, int]()
    while at < length:
        if generator.random() < chance:
            at, n_seen = at + 1, n_seen + 1
            continue
        key = int(generator.integers(len(value_of)))
        inputs[at] = key
        if key in last:
            targets[at], between = value_of[key], n_seen - last[key]
            since[at] = 1 << (between.bit_length() - 1) if between else 0
        last[key] = n_seen
        inputs[at + 1 : at + 2] = value_of[key]
        at += 2
    return Drawn(inputs, targets, {"noise": since})
