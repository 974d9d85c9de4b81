"""Recall of pairs that stand earlier in the same window (Poli et al. 2024, arXiv 2403.17844)."""

from typing import Annotated

import numpy as np

from app.options import Within
from datamodules.tasks import Drawn, unscored


def in_context_recall(
    generator: np.random.Generator,
    *,
    vocab_size: Annotated[int, Within("[4, inf)")] = 16,
    length: Annotated[int, Within("[4, inf)")] = 128,
) -> Drawn:
    """Keys and their values; a key that has been seen in the window asks for its value again.

    The lower half of the symbols are keys, the others values; which key has which value is drawn for each window::

        input     3 11  5  9  3 11  0 14  5  9
        target    .  .  .  . 11  .  .  .  9  .

    Slices: ``gap``, the power of two, rounded down, of the pairs since the key was seen.
    """
    n_keys, n_pairs = vocab_size // 2, length // 2
    value_of = generator.integers(n_keys, vocab_size, n_keys)
    keys = generator.integers(0, n_keys, n_pairs)
    inputs = np.zeros(length, dtype=np.int64)
    inputs[: 2 * n_pairs : 2], inputs[1 : 2 * n_pairs : 2] = keys, value_of[keys]
    targets, gaps = unscored(length), np.full(length, -1)
    last: dict[int, int] = {}
    for pair, key in enumerate(keys.tolist()):
        if key in last:
            targets[2 * pair] = value_of[key]
            gaps[2 * pair] = 1 << ((pair - last[key]).bit_length() - 1)
        last[key] = pair
    return Drawn(inputs, targets, {"gap": gaps})
