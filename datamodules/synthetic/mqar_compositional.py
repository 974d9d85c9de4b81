"""Associative recall by keys of two parts, of which neither tells the value alone (arXiv 2312.04927)."""

from typing import Annotated

import numpy as np

from app.options import PositiveFloat, PositiveInt, Within
from datamodules.synthetic.mqar import slots
from datamodules.tasks import Drawn, at_sizes, unscored

TRAINING = {"length": (64, 128, 256, 256), "n_pairs": (4, 8, 16, 32)}
TESTS = {"length": (64, 64, 128, 256, 256), "n_pairs": (4, 8, 16, 16, 32)}


@at_sizes(TESTS, **TRAINING)
def mqar_compositional(
    generator: np.random.Generator,
    *,
    vocab_size: Annotated[int, Within("[4, inf)")] = 8192,
    length: PositiveInt = 256,
    n_pairs: PositiveInt = 16,
    power: PositiveFloat = 0.01,
) -> Drawn:
    """``mqar`` with keys of two symbols, drawn from few, so that each symbol belongs to several keys.

    A window has as many different key symbols as are needed for ``n_pairs`` pairs of them to fill at most half of all;
    they are of the lower half of the symbols, values and what fills of the upper half. Asked at the second part::

        input     3 5 91  5 3 77  5 5 64 70 88  5 3 90
        target    . .  .  . .  .  . .  .  .  .  . 77 .

    Slices: the sizes.
    """
    half, begin = vocab_size // 2, 3 * n_pairs
    n_parts = int(np.ceil(np.sqrt(2 * n_pairs)))
    n_slots = (length - begin) // 3
    if n_slots < n_pairs or half < n_parts:
        raise ValueError(
            f"n_pairs = {n_pairs} needs length >= {6 * n_pairs} and vocab_size >= {2 * n_parts}, "
            f"not {length} and {vocab_size}"
        )
    parts = generator.choice(half, n_parts, replace=False)
    chosen = generator.choice(n_parts**2, n_pairs, replace=False)
    first, second = parts[chosen // n_parts], parts[chosen % n_parts]
    values = generator.integers(half, vocab_size, n_pairs)
    inputs, targets = generator.integers(half, vocab_size, length), unscored(length)
    inputs[0:begin:3], inputs[1:begin:3], inputs[2:begin:3] = first, second, values
    places = begin + 3 * slots(generator, n_slots, n_pairs, power)
    inputs[places], inputs[places + 1], targets[places + 1] = first, second, values
    return Drawn(inputs, targets)
