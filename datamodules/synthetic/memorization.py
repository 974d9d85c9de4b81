"""Facts that are the same in every window, so that only the weights can hold them (arXiv 2403.17844)."""

from typing import Annotated

import numpy as np

from app.options import NonNegativeInt, PositiveInt, Within
from datamodules.tasks import Drawn


def memorization(
    generator: np.random.Generator,
    *,
    seed: NonNegativeInt = 0,
    vocab_size: Annotated[int, Within("[2, inf)")] = 256,
    length: PositiveInt = 32,
    n_facts: PositiveInt = 256,
) -> Drawn:
    """Subjects in any order, each asked for its fact; the window says nothing about it.

    The first ``n_facts`` symbols are subjects; the fact of each is any symbol, the same in all windows of a seed. Facts
    are never inputs::

        input     71   3  71 200
        target     9  40   9   9
    """
    if n_facts > vocab_size:
        raise ValueError(f"n_facts = {n_facts} needs vocab_size >= {n_facts}, not {vocab_size}")
    inputs = generator.integers(0, n_facts, length)
    return Drawn(inputs, facts(seed, n_facts, vocab_size)[inputs])


def facts(seed: int, n_facts: int, vocab_size: int) -> np.ndarray:
    """``(n_facts,)`` the fact of each subject."""
    return np.random.default_rng([seed, n_facts, vocab_size]).integers(0, vocab_size, n_facts)
