"""Multi-query associative recall (Arora et al. 2023, arXiv 2312.04927)."""

from typing import Annotated

import numpy as np

from app.options import PositiveFloat, PositiveInt, Within
from datamodules.tasks import Drawn, at_sizes, unscored

#: as trained, and as tested at no greater length
TRAINING = {"length": (64, 128, 256, 256, 256), "n_pairs": (4, 8, 16, 32, 64)}
TESTS = {"length": (64, 64, 64, 128, 256, 256), "n_pairs": (4, 8, 16, 32, 16, 64)}


@at_sizes(TESTS, **TRAINING)
def mqar(
    generator: np.random.Generator,
    *,
    vocab_size: Annotated[int, Within("[4, inf)")] = 8192,
    length: PositiveInt = 256,
    n_pairs: PositiveInt = 16,
    power: PositiveFloat = 0.01,
) -> Drawn:
    """Pairs of a key and a value, then each key once more, at gaps that follow a power law; else fill.

    Keys are symbols of the lower half, values of the upper; what fills is any symbol that is no key of the window::

        input     3 91  5 77 60  5 88  3 12 64
        target    .  .  .  .  . 77  . 91  .  .

    Slices: the sizes.
    """
    n_keys, begin = vocab_size // 2, 2 * n_pairs
    n_slots = (length - begin) // 2
    if n_slots < n_pairs or n_keys < n_pairs:
        raise ValueError(
            f"n_pairs = {n_pairs} needs length >= {4 * n_pairs} and vocab_size >= {2 * n_pairs}, "
            f"not {length} and {vocab_size}"
        )
    keys = generator.choice(n_keys, n_pairs, replace=False)
    values = generator.integers(n_keys, vocab_size, n_pairs)
    inputs, targets = fill(generator, length, vocab_size, keys), unscored(length)
    inputs[0:begin:2], inputs[1:begin:2] = keys, values
    places = begin + 2 * slots(generator, n_slots, n_pairs, power)
    inputs[places], targets[places] = keys, values
    return Drawn(inputs, targets)


def slots(generator: np.random.Generator, n_slots: int, n_queries: int, power: float) -> np.ndarray:
    """``(n_queries,)`` different slots; the i-th, from 1, is as likely as ``power · i^(power − 1)``."""
    weights = power * np.arange(1, n_slots + 1, dtype=np.float64) ** (power - 1)
    return generator.choice(n_slots, n_queries, replace=False, p=weights / weights.sum())


def fill(generator: np.random.Generator, length: int, vocab_size: int, keys: np.ndarray) -> np.ndarray:
    """``(length,)`` symbols of which none is one of ``keys``, each of them distinct."""
    drawn = generator.integers(0, vocab_size - len(keys), length)
    taken = np.sort(keys) - np.arange(len(keys))  # how many others stand below each key
    return drawn + np.searchsorted(taken, drawn, side="right")
