"""Regimes that each have a rule of their own: what routes or banks could be for, planted."""

from typing import Annotated

import numpy as np

from app.options import NonNegativeInt, PositiveInt, Within
from datamodules.tasks import Drawn, unscored


def planted_routes(
    generator: np.random.Generator,
    *,
    seed: NonNegativeInt = 0,
    vocab_size: Annotated[int, Within("[4, inf)")] = 36,
    length: Annotated[int, Within("[4, inf)")] = 128,
    n_regimes: PositiveInt = 4,
    max_run: Annotated[int, Within("[2, inf)")] = 16,
) -> Drawn:
    """Runs of symbols, each under a regime that a marker in front of it tells; the next symbol follows from the last.

    Each regime is a permutation of the symbols, the same in all windows of a seed. The last ``n_regimes`` symbols of
    the vocabulary are the markers. Only the first symbol of a run and its length, 2 to ``max_run``, are random::

        input     B  3  7  1  A  3  5  0
        target    .  7  1  .  .  5  0  2

    Slices: ``regime``.
    """
    n_symbols = vocab_size - n_regimes
    if n_symbols < 2:
        raise ValueError(f"n_regimes = {n_regimes} needs vocab_size >= {n_regimes + 2}, not {vocab_size}")
    after = rules(seed, n_symbols, n_regimes)
    inputs, targets, regimes = np.zeros(length, dtype=np.int64), unscored(length), np.full(length, -1)
    place = 0
    while place < length:
        regime, n_run = int(generator.integers(n_regimes)), int(generator.integers(2, max_run + 1))
        inputs[place], symbol = n_symbols + regime, int(generator.integers(n_symbols))
        run = np.arange(place + 1, min(place + 1 + n_run, length))
        for at in run:
            inputs[at], symbol = symbol, int(after[regime, symbol])
            if at < run[-1] or at == length - 1:
                targets[at], regimes[at] = symbol, regime
        place += 1 + n_run
    return Drawn(inputs, targets, {"regime": regimes})


def rules(seed: int, n_symbols: int, n_regimes: int) -> np.ndarray:
    """``(n_regimes, n_symbols)`` the symbol that follows each."""
    generator = np.random.default_rng([seed, n_symbols, n_regimes])
    return np.stack([generator.permutation(n_symbols) for _ in range(n_regimes)])
