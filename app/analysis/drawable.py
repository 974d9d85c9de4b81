"""What a picture has a place for: numbers on an axis, and names as plain text on one line."""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from app.analysis.html import STEERING, sign

#: beyond it a number has no place; products and distances of what is left are numbers too
LARGEST = 1e100
#: characters of a name
LONGEST = 120


def numbers(values: Iterable[Any] | np.ndarray) -> np.ndarray:
    """The same as float64, NaN where there is no place on an axis: not finite, or larger than :data:`LARGEST`.

    What is closer to zero than one over that is zero.
    """
    known = np.asarray(values, dtype=np.float64)
    size = np.abs(known)
    return np.where(size <= LARGEST, np.where(size < 1 / LARGEST, 0.0, known), np.nan)


def number(value: float | None) -> float | None:
    """The same for one number; None where there is none, or no place for it."""
    if value is None:
        return None
    placed = float(numbers([value])[0])
    return None if np.isnan(placed) else placed


def text(value: object, limit: int = LONGEST) -> str:
    """A name on one line: signs for what would not be seen, the middle left out of what is too long.

    A space stands before an underscore at its beginning: a legend leaves such names out.

    Args:
        value: any.
        limit: characters at most, 3 or more.
    """
    line = re.sub(r"\s", " ", STEERING.sub(lambda found: sign(found[0]), str(value))).strip()
    if len(line) > limit:
        n_first = (limit - 1) // 2
        line = f"{line[:n_first]}…{line[n_first + 1 - limit :]}"
    return f" {line}" if line.startswith("_") else line
