"""Associative recall where a key may be written again: the last value counts (arXiv 2312.04927)."""

from typing import Annotated

import numpy as np

from app.options import PositiveFloat, PositiveInt, Within
from datamodules.synthetic.mqar import TESTS, TRAINING, fill, slots
from datamodules.tasks import Drawn, at_sizes, unscored


@at_sizes(TESTS, **TRAINING)
def mqar_forgetting(
    generator: np.random.Generator,
    *,
    vocab_size: Annotated[int, Within("[4, inf)")] = 8192,
    length: PositiveInt = 256,
    n_pairs: PositiveInt = 16,
    writes_per_key: PositiveInt = 2,
    power: PositiveFloat = 0.01,
) -> Drawn:
    """``mqar`` whose pairs are several writes of fewer keys, in any order; each key asks once for what it has last.

    There are ``n_pairs / writes_per_key`` keys, rounded up; each is written at least once::

        input     3 91  5 77  3 64 60  5 88  3 12
        target    .  .  .  .  .  .  . 77  . 64  .

    Slices: the sizes, and ``writes`` of the key.
    """
    n_keys, begin, half = -(-n_pairs // writes_per_key), 2 * n_pairs, vocab_size // 2
    n_slots = (length - begin) // 2
    if n_slots < n_keys or half < n_keys:
        raise ValueError(
            f"n_pairs = {n_pairs} needs length >= {begin + 2 * n_keys} and vocab_size >= {2 * n_keys}, "
            f"not {length} and {vocab_size}"
        )
    keys = generator.choice(half, n_keys, replace=False)
    written = generator.permutation(np.concatenate([keys, generator.choice(keys, n_pairs - n_keys)]))
    values = generator.integers(half, vocab_size, n_pairs)
    inputs, targets, writes = fill(generator, length, vocab_size, keys), unscored(length), np.full(length, -1)
    inputs[0:begin:2], inputs[1:begin:2] = written, values
    for key, place in zip(keys, begin + 2 * slots(generator, n_slots, n_keys, power), strict=True):
        places = np.flatnonzero(written == key)
        inputs[place], targets[place], writes[place] = key, values[places[-1]], len(places)
    return Drawn(inputs, targets, {"writes": writes})
