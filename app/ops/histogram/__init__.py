"""histogram: see README.md for the algebra."""

from app.ops.choice import operator
from app.ops.histogram import naive
from app.ops.histogram.naive import N_BINS

histogram = operator(naive.histogram)
histogram_quantiles = operator(naive.histogram_quantiles)

__all__ = ["N_BINS", "histogram", "histogram_quantiles"]
