"""A task of its own: here a word that is asked for backwards; another one draws something else."""

from typing import Annotated

import numpy as np

from app.options import PositiveInt, Within
from datamodules.tasks import Drawn, unscored


def reversal(
    generator: np.random.Generator,
    *,
    vocab_size: Annotated[int, Within("[2, inf)")] = 16,
    n_symbols: PositiveInt = 16,
) -> Drawn:
    """Symbols, then as many markers, at which they are asked for from the last one to the first.

    The last symbol of the vocabulary is the marker::

        input     4  7  2  M  M  M
        target    .  .  .  2  7  4

    Slices: ``place`` of the answer, from 0.
    """
    symbols = generator.integers(0, vocab_size - 1, n_symbols)
    inputs = np.concatenate([symbols, np.full(n_symbols, vocab_size - 1)])
    targets, places = unscored(2 * n_symbols), np.full(2 * n_symbols, -1)
    targets[n_symbols:], places[n_symbols:] = symbols[::-1], np.arange(n_symbols)
    return Drawn(inputs, targets, {"place": places})
