"""Copying of symbols that stand among blanks (Gu and Dao, arXiv 2312.00752; Poli et al., arXiv 2403.17844)."""

from typing import Annotated

import numpy as np

from app.options import PositiveInt, Within
from datamodules.tasks import Drawn, unscored


def selective_copy(
    generator: np.random.Generator,
    *,
    vocab_size: Annotated[int, Within("[3, inf)")] = 16,
    length: Annotated[int, Within("[3, inf)")] = 256,
    n_symbols: PositiveInt = 16,
) -> Drawn:
    """Symbols at random places among blanks, asked for in their order at as many markers behind them.

    The last symbol of the vocabulary is the marker, the one before it the blank. The answers are never inputs::

        input     -  4  -  -  7  2  -  M  M  M
        target    .  .  .  .  .  .  .  4  7  2

    Slices: ``place`` of the answer, from 0.
    """
    room = length - n_symbols
    if room < n_symbols:
        raise ValueError(
            f"length = {length} has no room for n_symbols = {n_symbols} twice; it must be at least {2 * n_symbols}"
        )
    blank, marker = vocab_size - 2, vocab_size - 1
    symbols = generator.integers(0, blank, n_symbols)
    inputs = np.full(length, blank, dtype=np.int64)
    inputs[np.sort(generator.choice(room, n_symbols, replace=False))] = symbols
    inputs[room:] = marker
    targets, places = unscored(length), np.full(length, -1)
    targets[room:], places[room:] = symbols, np.arange(n_symbols)
    return Drawn(inputs, targets, {"place": places})
