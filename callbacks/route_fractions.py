"""Shares of tokens per route or pathway, and the entropy of the router."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from app.records import Measure, StepRecord
from callbacks.watcher import MAX_ENTRIES_AS_SCALARS, MeasureWatcher, entry_labels, over_layers


class RouteFractions(MeasureWatcher):
    """Follows how tokens are divided among routes or pathways.

    Watches every measure with a layer axis that is a ``share`` without banks or a ``level`` in nats. Logged
    keys, for a measure ``<name>`` and each of its entries ``<label>`` (several axes are joined by a dot; no
    label where a layer has one number; only ``worst_…`` with more than 16 entries):

    - ``routes/<name>[/<label>]``: mean over layers; shares in [0, 1], entropy in nats, >= 0
    - ``routes/<name>[/<label>]/min``, ``/max``: smallest and largest layer, the same unit
    - ``routes/<name>[/<label>]/l<ii>``: layer ii, in networks of up to 8 layers, the same unit
    - ``routes/<name>/worst_layer``: index, 0 .. n_layers − 1, of the layer farthest from its target; without
      targets, of the layer with the largest share or the lowest entropy
    - ``routes/<name>/worst_deviation``: largest distance to the target, >= 0, where there are targets

    Details: ``routes/<name>``, the whole matrix.
    """

    def select(self, record: StepRecord) -> dict[str, Measure]:
        """Shares without banks and levels in nats, both over layers."""
        return {
            name: measure
            for name, measure in record.measures.items()
            if measure.has_axis("layer") and (_is_share(measure) or measure.unit == "nats")
        }

    def report(self, measures: Mapping[str, Measure]) -> tuple[dict[str, float], dict[str, Any]]:
        """Mean, smallest, largest and worst layer of each entry."""
        scalars: dict[str, float] = {}
        details: dict[str, Any] = {}
        for name, measure in measures.items():
            key = f"routes/{name}"
            values = measure.values.numpy()
            details[key] = values.tolist()
            matrix = values.reshape(values.shape[0], -1)
            labels = entry_labels(measure)
            if len(labels) <= MAX_ENTRIES_AS_SCALARS:
                for label, column in zip(labels, matrix.T, strict=True):
                    scalars |= over_layers(f"{key}/{label}" if label else key, column)
            if measure.target is not None:
                deviation = np.abs(values - measure.target.numpy()).reshape(matrix.shape).max(axis=1)
                scalars[f"{key}/worst_deviation"] = float(deviation.max())
            else:
                deviation = matrix.max(axis=1) if measure.kind == "share" else -matrix.min(axis=1)
            scalars[f"{key}/worst_layer"] = float(deviation.argmax())
        return scalars, details


def _is_share(measure: Measure) -> bool:
    return measure.kind == "share" and not measure.has_axis("bank")
