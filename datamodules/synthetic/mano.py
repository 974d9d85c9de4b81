"""Arithmetic in the head (Allen-Zhu 2025, "Physics of Language Models: Part 4.1", SSRN 5240330)."""

from typing import Annotated

import numpy as np

from app.options import PositiveInt, Within
from datamodules.tasks import Drawn, unscored


def mano(
    generator: np.random.Generator,
    *,
    vocab_size: Annotated[int, Within("[7, inf)")] = 28,
    length: Annotated[int, Within("[5, inf)")] = 128,
    modulus: Annotated[int, Within("[2, inf)")] = 23,
    max_operations: PositiveInt = 10,
) -> Drawn:
    """Expressions in prefix notation, their numbers and results modulo ``modulus``; the result is asked for at ``=``.

    Behind the numbers the vocabulary has ``+``, ``−``, ``×``, ``=`` and a blank. An expression has 1 to
    ``max_operations`` operations; one that does not fit any more gives way to blanks. Results are never inputs::

        input     +  7  ×  2  9  =  −  3  5  =  _
        target    .  .  .  .  .  2  .  .  . 21  .

    Slices: ``operations`` of the expression.
    """
    plus, equals, blank = modulus, modulus + 3, modulus + 4
    if vocab_size <= blank:
        raise ValueError(f"modulus = {modulus} needs vocab_size >= {modulus + 5}, not {vocab_size}")
    inputs, targets = np.full(length, blank, dtype=np.int64), unscored(length)
    operations = np.full(length, -1)
    place = 0
    while (longest := min(max_operations, (length - place) // 2 - 1)) >= 1:
        n_operations = int(generator.integers(1, longest + 1))
        expression, value = _expression(generator, n_operations, modulus, plus)
        inputs[place : place + len(expression)] = expression
        place += len(expression)
        inputs[place], targets[place], operations[place] = equals, value, n_operations
        place += 1
    return Drawn(inputs, targets, {"operations": operations})


def _expression(
    generator: np.random.Generator, n_operations: int, modulus: int, plus: int
) -> tuple[list[int], int]:
    """``2 n + 1`` symbols of an expression, and its value; its left side gets any number of the other operations."""
    if n_operations == 0:
        number = int(generator.integers(modulus))
        return [number], number
    operation, n_left = int(generator.integers(3)), int(generator.integers(n_operations))
    left, a = _expression(generator, n_left, modulus, plus)
    right, b = _expression(generator, n_operations - 1 - n_left, modulus, plus)
    return [plus + operation, *left, *right], (a + b, a - b, a * b)[operation] % modulus
