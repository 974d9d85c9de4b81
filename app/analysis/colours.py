"""How numbers become colours: one meaning per colour, readable ends, and a start that may leave the scale."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

#: the share of a heat-map's columns that may lie beyond its colours, so that the rest can be told apart
START_SHARE = 0.15
#: columns from which on there is a start to speak of
MIN_COLUMNS = 8
#: the start is left out where the rest has less than this share of the range
DOMINATED = 2 / 3


class Scale(NamedTuple):
    """How the numbers of one or more heat-maps become colours.

    Attributes:
        marks: numbers that a colour bar names: the ends and, in between, the neutral number or the middle.
        labels: what it calls them; an end that some numbers lie beyond has ≤ or ≥.
        norm: of the plotting library.
        colours: name of its map.
        neutral: number that is drawn white; None on a map that runs from low to high.
    """

    marks: tuple[float, float, float]
    labels: tuple[str, str, str]
    norm: Any
    colours: str
    neutral: float | None


def scale_of(matrices: Sequence[np.ndarray], neutral: float | None = None, from_zero: bool = False) -> Scale:
    """One scale for matrices that are drawn alike.

    Numbers on both sides of zero part at zero, with equal colours for equal distances.

    Args:
        matrices: ``(rows, columns)``, time from left to right; NaN counts for nothing.
        neutral: the number at which colours part; None where there is none but, perhaps, zero.
        from_zero: whether the scale begins at zero, as shares and counts do.
    """
    from matplotlib.colors import Normalize, TwoSlopeNorm

    extremes = _range(matrices)
    low, high = shown_range(matrices)
    if neutral is None and low < 0 < high:
        high = max(-low, high)
        low, neutral = -high, 0.0
    if neutral is not None:
        reach = 0.05 * abs(neutral) or 1e-6
        low, high = min(low, neutral - reach), max(high, neutral + reach)
        marks = (low, neutral, high)
        return Scale(marks, _labels(marks, extremes), TwoSlopeNorm(neutral, low, high), "RdBu_r", neutral)
    if from_zero:
        low, high = 0.0, high or 1.0
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # one colour for one number
        reach = 0.5 * abs(high) or 0.5
        low, high = low - reach, high + reach
    marks = (low, (low + high) / 2, high)
    return Scale(marks, _labels(marks, extremes), Normalize(low, high), "viridis", None)


def shown_range(matrices: Sequence[np.ndarray]) -> tuple[float, float]:
    """Smallest and largest number that are to be told apart: all of them, or those after a start that dwarfs them."""
    whole = _range(matrices)
    n_columns = matrices[0].shape[1]
    if n_columns < MIN_COLUMNS:
        return whole
    first = int(np.ceil(START_SHARE * n_columns))
    later = _range([matrix[:, first:] for matrix in matrices])
    # Of numbers that have come to rest at one value the start is all there is to see.
    is_dwarfed = 0 < later[1] - later[0] < DOMINATED * (whole[1] - whole[0])
    return later if is_dwarfed else whole


def short(number: float, span: float = 0.0) -> str:
    """Three significant digits, without an exponent where that is shorter.

    Args:
        number: any.
        span: range of the numbers beside it, of which three digits are kept; 0 where there are none.
    """
    if span > 0:
        number = round(number, max(2 - math.floor(math.log10(span)), 0)) + 0.0  # and no minus before a zero
    if abs(number) >= 1000:
        return f"{number:,.0f}"
    return f"{number:.3g}"


def _labels(marks: tuple[float, float, float], extremes: tuple[float, float]) -> tuple[str, str, str]:
    span = marks[2] - marks[0]
    low, middle, high = (short(mark, span) for mark in marks)
    is_below = extremes[0] < marks[0] and short(extremes[0], span) != low
    is_above = extremes[1] > marks[2] and short(extremes[1], span) != high
    return f"≤ {low}" if is_below else low, middle, f"≥ {high}" if is_above else high


def _range(matrices: Sequence[np.ndarray]) -> tuple[float, float]:
    numbers = np.concatenate([matrix[np.isfinite(matrix)] for matrix in matrices])
    return (float(numbers.min()), float(numbers.max())) if len(numbers) else (0.0, 1.0)
