"""The thresholds that route tokens, and what they are compared with."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from app.records import Measure, StepRecord
from callbacks.watcher import MAX_ENTRIES_AS_SCALARS, MeasureWatcher, entry_labels, over_layers

UNIT = "deviation"


class RunningThresholds(MeasureWatcher):
    """Follows thresholds, their offsets and the mean deviation.

    Watches every measure with a layer axis that is a ``threshold`` or a ``level`` in units of deviation. Logged
    keys, for a measure ``<name>`` and each of its entries ``<label>`` (no label where a layer has one number;
    only ``thresholds/gap`` and the details with more than 16 entries), all in units of deviation:

    - ``thresholds/<name>[/<label>]``: mean over layers; thresholds are any real number, in order of their labels
    - ``thresholds/<name>[/<label>]/min``, ``/max``: smallest and largest layer
    - ``thresholds/<name>[/<label>]/l<ii>``: layer ii, in networks of up to 8 layers
    - ``thresholds/<name>/gap``: of a threshold with several entries, the smallest distance between neighbours in
      any layer; below 0 they are out of order
    - ``thresholds/<name>/running``: of a level without entries (the deviation), its mean over layers, averaged
      over logged steps with weight 0.1 for the newest

    Details: ``thresholds/<name>``, the whole matrix.
    """

    def __init__(self) -> None:
        super().__init__()
        self.running: dict[str, float] = {}

    def select(self, record: StepRecord) -> dict[str, Measure]:
        """Thresholds and levels in units of deviation, both over layers."""
        return {
            name: measure
            for name, measure in record.measures.items()
            if measure.has_axis("layer")
            and (measure.kind == "threshold" or (measure.kind == "level" and measure.unit == UNIT))
        }

    def report(self, measures: Mapping[str, Measure]) -> tuple[dict[str, float], dict[str, Any]]:
        """Mean, smallest and largest layer of each entry, gaps and running means."""
        scalars: dict[str, float] = {}
        details: dict[str, Any] = {}
        for name, measure in measures.items():
            key = f"thresholds/{name}"
            values = measure.values.numpy()
            details[key] = values.tolist()
            matrix = values.reshape(values.shape[0], -1)
            labels = entry_labels(measure)
            if len(labels) <= MAX_ENTRIES_AS_SCALARS:
                for label, column in zip(labels, matrix.T, strict=True):
                    scalars |= over_layers(f"{key}/{label}" if label else key, column)
            if measure.kind == "threshold" and len(labels) > 1:
                scalars[f"{key}/gap"] = float(np.diff(matrix, axis=1).min())
            if measure.kind == "level" and len(measure.axes) == 1:
                mean = float(values.mean())
                self.running[name] = 0.9 * self.running.get(name, mean) + 0.1 * mean
                scalars[f"{key}/running"] = self.running[name]
        return scalars, details

    def state_dict(self) -> dict[str, Any]:
        return {"running": dict(self.running)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.running = dict(state_dict["running"])
