"""Strings of a random automaton, learnt in context (Akyürek et al. 2024, arXiv 2401.12973)."""

from typing import Annotated

import numpy as np

from app.options import PositiveInt, Within
from datamodules.tasks import Drawn, unscored


def regbench(
    generator: np.random.Generator,
    *,
    vocab_size: Annotated[int, Within("[5, inf)")] = 19,
    length: Annotated[int, Within("[2, inf)")] = 256,
    max_states: Annotated[int, Within("[4, inf)")] = 12,
    max_edges: PositiveInt = 4,
    max_string: PositiveInt = 50,
) -> Drawn:
    """Strings of one automaton, drawn for each window; what may follow has to be found out from the earlier ones.

    It has 4 to ``max_states`` states and 4 to ``vocab_size − 1`` symbols; a state has 1 to ``max_edges`` edges, each
    with a symbol of its own and to any state, all equally likely. A string begins in the first state and is 1 to
    ``max_string`` symbols long. The last symbol of the vocabulary, ``|``, stands before each; where it follows, which
    is a matter of length alone, nothing is scored::

        input     |  2  0  2  |  2  1  |  2
        target    2  0  2  .  2  1  .  2  0
        may be    2 01  2    2 01     2 01

    Slices: ``string``, the number of strings before it plus one, rounded down to a power of two.
    """
    n_symbols, separator = int(generator.integers(4, vocab_size)), vocab_size - 1
    n_states = int(generator.integers(4, max_states + 1))
    edges = []
    for _ in range(n_states):
        n_edges = int(generator.integers(1, min(max_edges, n_symbols) + 1))
        symbols = generator.choice(n_symbols, n_edges, replace=False)
        edges.append(
            list(zip(symbols.tolist(), generator.integers(0, n_states, n_edges).tolist(), strict=True))
        )
    inputs, targets = np.zeros(length, dtype=np.int64), unscored(length)
    truth, strings = np.zeros((length, vocab_size), dtype=np.float32), np.full(length, -1)
    place = n_strings = 0
    while place < length:
        inputs[place], state = separator, 0
        for _ in range(int(generator.integers(1, max_string + 1))):
            if place >= length:
                break
            symbol, following = edges[state][int(generator.integers(len(edges[state])))]
            truth[place, [s for s, _ in edges[state]]] = 1 / len(edges[state])
            targets[place], strings[place] = symbol, 1 << (n_strings + 1).bit_length() - 1
            place, state = place + 1, following
            if place < length:
                inputs[place] = symbol
        place, n_strings = place + 1, n_strings + 1
    return Drawn(inputs, targets, {"string": strings}, truth)
