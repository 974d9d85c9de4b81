"""Hops over a directed cycle (Allen-Zhu 2025, "Physics of Language Models: Part 4.1", SSRN 5240330)."""

from typing import Annotated

import numpy as np

from app.options import PositiveInt, Within
from datamodules.tasks import Drawn, unscored


def depo(
    generator: np.random.Generator,
    *,
    vocab_size: Annotated[int, Within("[6, inf)")] = 32,
    length: Annotated[int, Within("[8, inf)")] = 96,
    max_nodes: Annotated[int, Within("[3, inf)")] = 16,
    max_hops: PositiveInt = 4,
) -> Drawn:
    """The edges of one cycle in any order, then questions: so many hops from this node.

    The last ``max_hops`` symbols of the vocabulary stand for hops, the others are nodes, of which a window has 3 to
    ``max_nodes``. Asked at the node; answers are never inputs. A last symbol without a question is the first node::

        input     4 7  9 4  7 9  h2 4  h1 7
        target    . .  . .  . .   . 9   . 9

    Slices: ``hops``.
    """
    n_names = vocab_size - max_hops
    if n_names < max_nodes or length < 2 * max_nodes + 2:
        raise ValueError(
            f"max_nodes = {max_nodes} needs length >= {2 * max_nodes + 2} and vocab_size >= {max_nodes + max_hops}, "
            f"not {length} and {vocab_size}"
        )
    n_nodes = int(generator.integers(3, max_nodes + 1))
    cycle = generator.choice(n_names, n_nodes, replace=False)
    order, begin = generator.permutation(n_nodes), 2 * n_nodes
    inputs, targets = np.full(length, cycle[order[0]], dtype=np.int64), unscored(length)
    inputs[0:begin:2], inputs[1:begin:2] = cycle[order], cycle[(order + 1) % n_nodes]
    n_questions, asked_hops = (length - begin) // 2, np.full(length, -1)
    hops, node = generator.integers(1, max_hops + 1, n_questions), generator.integers(0, n_nodes, n_questions)
    places = begin + 2 * np.arange(n_questions)
    inputs[places], inputs[places + 1] = n_names + hops - 1, cycle[node]
    targets[places + 1], asked_hops[places + 1] = cycle[(node + hops) % n_nodes], hops
    return Drawn(inputs, targets, {"hops": asked_hops})
