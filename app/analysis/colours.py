"""How numbers become colours: one meaning per colour, readable ends, and what passes by may leave the scale."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

#: the share of a heat-map's columns that may lie beyond its colours, so that the rest can be told apart
START_SHARE = 0.15
#: columns from which on there is a start to speak of
MIN_COLUMNS = 8
#: the share of the columns, at either end of the range, that a peak may pass in
PEAK_SHARE = 0.1
#: start and peaks are left out where the rest has less than this share of the range
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


def scale_of(
    matrices: Sequence[np.ndarray],
    neutral: float | None = None,
    from_zero: bool = False,
    maximum: float | None = None,
) -> Scale:
    """One scale for matrices that are drawn alike.

    Numbers on both sides of zero part at zero, with equal colours for equal distances.

    Args:
        matrices: ``(rows, columns)``, time from left to right; NaN counts for nothing.
        neutral: the number at which colours part; None where there is none but, perhaps, zero.
        from_zero: whether the scale begins at zero, as shares and counts do.
        maximum: the most that a number can be: the scale then runs from zero to it, and names it.
    """
    from matplotlib.colors import Normalize, TwoSlopeNorm

    extremes = _range(matrices)
    low, high = shown_range(matrices)
    if neutral is None and low < 0 < high:
        high = max(-low, high)
        low, neutral = -high, 0.0
    if neutral is not None:
        reach = 0.05 * (abs(neutral) or max(abs(low), abs(high))) or 1e-6
        low, high = min(low, neutral - reach), max(high, neutral + reach)
        marks = (low, neutral, high)
        return Scale(marks, _labels(marks, extremes), TwoSlopeNorm(neutral, low, high), "RdBu_r", neutral)
    if maximum is not None and maximum > 0:
        marks = (0.0, maximum / 2, maximum)
        low_label, middle, _ = _labels(marks, (0.0, maximum))
        return Scale(marks, (low_label, middle, _most(maximum)), Normalize(0.0, maximum), "viridis", None)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0) or 1.0
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # one colour for one number
        reach = 0.5 * abs(high) or 0.5
        low, high = low - reach, high + reach
    marks = (low, (low + high) / 2, high)
    return Scale(marks, _labels(marks, extremes), Normalize(low, high), "viridis", None)


def shown_range(matrices: Sequence[np.ndarray]) -> tuple[float, float]:
    """Smallest and largest number that are to be told apart: all of them, or those beside what passes by.

    What passes by is a start, or a peak in few columns, that dwarfs the rest.
    """
    whole = _range(matrices)
    n_columns = matrices[0].shape[1]
    if n_columns < MIN_COLUMNS:
        return whole
    first = int(np.ceil(START_SHARE * n_columns))
    later = [matrix[:, first:] for matrix in matrices]
    found = _if_dwarfed(whole, _range(later))
    lasting = later if found != whole else matrices
    return _if_dwarfed(found, _without_peaks(lasting))


def _if_dwarfed(whole: tuple[float, float], rest: tuple[float, float]) -> tuple[float, float]:
    """The range of the rest where the whole dwarfs it."""
    # Of numbers that have come to rest at one value what went before is all there is to see.
    return rest if 0 < rest[1] - rest[0] < DOMINATED * (whole[1] - whole[0]) else whole


def _without_peaks(matrices: Sequence[np.ndarray]) -> tuple[float, float]:
    """The range but for the few columns with the largest, and of both signs also with the smallest, numbers.

    A drop towards zero cannot dwarf the rest.
    """
    stacked = np.concatenate([np.where(np.isfinite(matrix), matrix, np.nan) for matrix in matrices])
    known = stacked[:, np.isfinite(stacked).any(axis=0)]
    if not known.shape[1]:
        return 0.0, 1.0
    lowest = np.nanmin(known, axis=0)
    low = lowest.min() if lowest.min() >= 0 else np.quantile(lowest, PEAK_SHARE)
    high = np.quantile(np.nanmax(known, axis=0), 1 - PEAK_SHARE)
    return float(low), float(high)


def _most(maximum: float) -> str:
    """The name of the most that a number can be; of an entropy in nats also as the logarithm that it is."""
    n = round(math.exp(min(maximum, 30.0)))
    is_logarithm = n > 1 and math.isclose(math.log(n), maximum, rel_tol=1e-6)
    return f"ln {n} = {short(maximum)}" if is_logarithm else f"most: {short(maximum)}"


def short(number: float, span: float = 0.0) -> str:
    """Three significant digits, without an exponent where that is shorter.

    Args:
        number: any.
        span: range of the numbers beside it, of which three digits are kept; 0 where there are none.
    """
    if 0 < span < math.inf and math.isfinite(number):
        number = round(number, max(2 - math.floor(math.log10(span)), 0)) + 0.0  # and no minus before a zero
    if 1000 <= abs(number) < 1e9:
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
