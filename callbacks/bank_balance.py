"""How evenly the banks of the pathways are used."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from app.records import Measure, StepRecord
from callbacks.watcher import MAX_ENTRIES_AS_SCALARS, MeasureWatcher, entry_labels, over_layers

AUXILIARY = "aux_loss"


class BankBalance(MeasureWatcher):
    """Follows load and probability of every bank, over the global batch of each logged step.

    Watches the measures with a ``bank`` axis: counts are loads, shares are probabilities. Logged keys, where
    ``<label>`` is a pathway (or whatever other axes than layer and bank there are, joined by a dot; left out
    with more than 16 of them):

    - ``balance/aux_loss``: the auxiliary loss as it enters training, weighted, in nats
    - ``balance/excess``: mean of (probability / target − 1)²; 0 is even; only where there is a target
    - ``balance/max_over_mean_load``: largest over mean load of a pathway's banks, mean over layers and
      pathways, in [1, n_banks]; 1 is even, and what a pathway without any token counts as
    - ``balance/dead_banks``: banks of all layers without a token in this step, 0 .. number of banks
    - ``balance/excess/<label>``, ``balance/max_over_mean_load/<label>``, ``balance/dead_banks/<label>``: the
      same of one pathway
    - ``balance/excess/min``, ``/max``, ``/worst_layer`` and ``balance/max_over_mean_load/min``, ``/max``,
      ``/worst_layer``: smallest and largest layer, and the index, 0 .. n_layers − 1, of the largest
    - ``balance/excess/l<ii>``, ``balance/max_over_mean_load/l<ii>``: layer ii, in networks of up to 8 layers

    A network with several loads, or several probabilities, gets ``balance/<name>/…`` in place of
    ``balance/…`` for each of them. Details: ``balance/<name>``, the whole matrix of each measure.
    """

    def select(self, record: StepRecord) -> dict[str, Measure]:
        """Counts and shares of banks and, where there are any, the auxiliary loss."""
        banks = {
            name: measure
            for name, measure in record.measures.items()
            if measure.has_axis("bank") and measure.kind in ("count", "share")
        }
        if banks:
            banks[AUXILIARY] = Measure(record.output.aux_loss, (), "level", unit="nats")
        return banks

    def report(self, measures: Mapping[str, Measure]) -> tuple[dict[str, float], dict[str, Any]]:
        """The table of the class docstring."""
        scalars: dict[str, float] = {"balance/aux_loss": float(measures[AUXILIARY].values.numpy())}
        details: dict[str, Any] = {}
        kinds = Counter(measure.kind for measure in measures.values())
        for name, measure in measures.items():
            if name == AUXILIARY:
                continue
            details[f"balance/{name}"] = measure.values.tolist()
            group = f"balance/{name}" if kinds[measure.kind] > 1 else "balance"
            labels = entry_labels(measure, without=("layer", "bank"))
            if measure.kind == "count":
                loads_LPN = _layers_groups_banks(measure, measure.values)
                dead_P = (loads_LPN == 0).sum(axis=(0, 2))
                scalars |= _summary(f"{group}/max_over_mean_load", _max_over_mean(loads_LPN), labels)
                scalars |= {f"{group}/dead_banks": float(dead_P.sum())}
                scalars |= _labelled(f"{group}/dead_banks", dead_P, labels)
            elif measure.target is not None:
                deviation_LPN = _layers_groups_banks(measure, (measure.values / measure.target - 1).square())
                scalars |= _summary(f"{group}/excess", deviation_LPN.mean(axis=2), labels)
        return scalars, details


def _layers_groups_banks(measure: Measure, values: Tensor) -> np.ndarray:
    """Values rearranged to ``(layer, everything else, bank)``; one layer where there is no such axis."""
    values = values.movedim([axis.name for axis in measure.axes].index("bank"), -1)
    n_layers = values.shape[0] if measure.has_axis("layer") else 1
    return values.reshape(n_layers, -1, values.shape[-1]).numpy()


def _max_over_mean(loads_LPN: np.ndarray) -> np.ndarray:
    mean_LP = loads_LPN.mean(axis=2)
    return np.where(mean_LP > 0, loads_LPN.max(axis=2) / np.where(mean_LP > 0, mean_LP, 1), 1.0)


def _summary(key: str, values_LP: np.ndarray, labels: list[str]) -> dict[str, float]:
    """Scalars of a quantity per layer and pathway."""
    values_L = values_LP.mean(axis=1)
    worst = {f"{key}/worst_layer": float(values_L.argmax())}
    return over_layers(key, values_L) | worst | _labelled(key, values_LP.mean(axis=0), labels)


def _labelled(key: str, values_P: np.ndarray, labels: list[str]) -> dict[str, float]:
    """One scalar per pathway that has a name."""
    if len(labels) > MAX_ENTRIES_AS_SCALARS:
        return {}
    return {f"{key}/{label}": float(value) for label, value in zip(labels, values_P, strict=True) if label}
