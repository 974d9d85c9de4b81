"""What tokens cost, and how often a limit was met."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from app.records import Measure, StepRecord
from callbacks.watcher import MeasureWatcher, entry_labels, over_layers

UNIT = "units"
AXES = (UNIT, "cap", "overflow")


class EnergyBudget(MeasureWatcher):
    """Follows the units of compute that tokens cost.

    Watches levels in ``units`` and counts with an axis ``units`` (tokens at each level), ``cap`` (rows below and
    at their total) or ``overflow`` (tokens that went without for want of room). Logged keys:

    - ``budget/<name>``: mean units per token, ≥ 1, mean over layers, of a level ``<name>``
    - ``budget/<name>/<label>``: share of tokens at level ``<label>``, or of rows ``below`` and at (``hit``) their
      cap, in [0, 1], mean over layers
    - ``budget/overflow/<label>``: tokens of a route in this step and all layers that found no room, ≥ 0

    The first two with ``/min``, ``/max`` (smallest and largest layer) and, in networks of up to 8 layers,
    ``/l<ii>``. Details: ``budget/<name>``, units, shares or counts of every layer.
    """

    def select(self, record: StepRecord) -> dict[str, Measure]:
        """Levels in units, and counts along one of the axes above, over layers."""
        return {
            name: measure
            for name, measure in record.measures.items()
            if measure.has_axis("layer")
            and (
                (measure.kind == "level" and measure.unit == UNIT)
                or (measure.kind == "count" and any(measure.has_axis(axis) for axis in AXES))
            )
        }

    def report(self, measures: Mapping[str, Measure]) -> tuple[dict[str, float], dict[str, Any]]:
        """The table of the class docstring."""
        scalars: dict[str, float] = {}
        details: dict[str, Any] = {}
        for name, measure in measures.items():
            key = f"budget/{name}"
            values = measure.values.numpy()
            matrix = values.reshape(values.shape[0], -1)  # (layers, entries)
            labels = entry_labels(measure)
            if measure.has_axis("overflow"):
                scalars |= {
                    f"{key}/{label}": float(column.sum())
                    for label, column in zip(labels, matrix.T, strict=True)
                }
            else:
                if measure.kind == "count":
                    matrix = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
                for label, column in zip(labels, matrix.T, strict=True):
                    scalars |= over_layers(f"{key}/{label}" if label else key, column)
            details[key] = matrix.reshape(values.shape).tolist()
        return scalars, details
