"""How peaked the attention of each head is, and how many directions its residual needs."""

from collections.abc import Mapping
from typing import Any

from app.records import Measure, StepRecord
from callbacks.watcher import MeasureWatcher, over_layers


class CrystalSpectrum(MeasureWatcher):
    """Follows the attention of layers that report it head by head, at logged steps.

    Watches every level with a layer and a ``head`` axis. A network with crystallised attention
    reports these three, from a few sequences of the batch. Logged keys, means over heads:

    - ``crystal/residual_r90``: modes that hold 90 % of the energy of what the best key's value leaves out,
      1 .. head width
    - ``crystal/attention_entropy``: of the softmax over all keys, in nats, 0 .. ln(sequence length)
    - ``crystal/top_share``: probability of the best key, in (0, 1]
    - ``crystal/<name>/min``, ``/max``: smallest and largest layer, the same unit
    - ``crystal/<name>/l<ii>``: the layer with this label or index, with up to 8 such layers

    Details: ``crystal/<name>``, layer by head.
    """

    def select(self, record: StepRecord) -> dict[str, Measure]:
        return {
            name: measure
            for name, measure in record.measures.items()
            if measure.kind == "level" and measure.has_axis("layer") and measure.has_axis("head")
        }

    def report(self, measures: Mapping[str, Measure]) -> tuple[dict[str, float], dict[str, Any]]:
        """The table of the class docstring."""
        scalars: dict[str, float] = {}
        details: dict[str, Any] = {}
        for name, measure in measures.items():
            key = f"crystal/{name}"
            values_LH = measure.values.flatten(1).numpy()
            names = measure.axes[0].labels
            layers = [int(name) for name in names] if all(map(str.isdecimal, names)) else None
            scalars |= over_layers(key, values_LH.mean(axis=1), layers)
            details[key] = measure.values.tolist()
        return scalars, details
