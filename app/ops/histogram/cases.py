"""Histograms of deviations and their quantiles, for measurements and checks."""

import torch

from app.ops.case import Arguments, Case, Draw, Size
from app.ops.histogram import N_BINS, histogram, histogram_quantiles
from app.ops.histogram.naive import histogram as counted

N_LAYERS, RANGE = 8, (0.0, 4.0)
LEVELS = (0.55, 0.8, 0.95)


def _values(size: Size, draw: Draw) -> Arguments:
    values = 1 + draw.normal(N_LAYERS, size.B, size.T)
    return {"values": values, "low": RANGE[0], "high": RANGE[1]}


def _counts(size: Size, draw: Draw) -> Arguments:
    given = _values(size, draw)
    levels = torch.tensor(LEVELS, device=draw.device)
    return {"levels": levels, "counts": counted(**given), "low": RANGE[0], "high": RANGE[1]}


CASES = {
    "histogram": Case(histogram, _values, lambda size: 4 * N_LAYERS * size.B * size.T, "BT"),
    "histogram_quantiles": Case(histogram_quantiles, _counts, lambda size: 13 * N_LAYERS * N_BINS, "BT"),
}
