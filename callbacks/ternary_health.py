"""Whether ternary weights are alive: how they divide over −1, 0 and +1, and how many still change."""

from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from app.analysis.depth_time import About
from callbacks.trits import TritWatch
from callbacks.watcher import Watcher, log_details, log_scalars, over_layers, step_record

#: quantity → whether its largest layer is the worst (else its smallest)
WORST_IS_LARGEST = {
    "negative": True,
    "zero": True,
    "positive": True,
    "scale": False,
    "flips": False,
    "flip_share": False,
}
#: what the details mean
ABOUT = {
    "ternary/negative": About("weights at −1", "share of all"),
    "ternary/zero": About("weights at 0", "share of all"),
    "ternary/positive": About("weights at +1", "share of all"),
    "ternary/scale": About("mean scale of the weights"),
    "ternary/flips": About("weights that flip", "per step"),
    "ternary/flip_share": About("weights that flip", "share per step"),
}


class TernaryHealth(Watcher):
    """Follows the ternary weights of each layer.

    Works on every network whose ``ternary_weights()`` names some. Logged keys, for each ``<quantity>``:

    - ``negative``, ``zero``, ``positive``: share of the layer's trits with this value, in [0, 1]
    - ``scale``: mean scale of the layer's weights, > 0
    - ``flips``: trits of the layer that this one optimizer step changed, >= 0
    - ``flip_share``: the same over the layer's trits, in [0, 1]

    as ``ternary/<quantity>`` (mean over layers), ``/min``, ``/max``, ``/worst_layer`` (index of the layer with the
    largest share, the smallest scale or the fewest flips), ``/l<ii>`` in networks of up to 8 layers, and
    ``/outside`` for the weights outside of the blocks together.

    Details: ``ternary/<quantity>``, a list over layers, and ``ternary/weights``, for each parameter its share of
    −1, 0 and +1, its mean scale and its flips.

    The numbers are the same on every rank. A logged step costs two readings of the trits, shared with
    :class:`callbacks.RunHealth`, and one transfer; the other steps cost nothing.

    Attributes:
        last: scalars of the newest logged step, by key.
        last_details: details of the newest logged step, by key.
    """

    def __init__(self) -> None:
        self.last: dict[str, float] = {}
        self.last_details: dict[str, Any] = {}
        self._has_warned = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets what a fit that broke off has left."""
        TritWatch.begin(pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keeps the trits that the step starts from, if it is a logged one."""
        TritWatch.of(pl_module).before_step(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes the numbers of a logged step."""
        record = step_record(outputs)
        if not (record.is_logged and record.is_last_micro):
            return
        counts = TritWatch.of(pl_module).after_step(pl_module, record.step)
        if counts is None:
            if not self._has_warned:
                rank_zero_warn(
                    "TernaryHealth has no effect: this network has no ternary weights; remove it from the callbacks"
                )
            self._has_warned = True
            return
        values = counts.values.cpu().double().numpy()
        numbers = [-1 if layer is None else layer for layer in counts.layers]
        self.last, self.last_details = _report(counts.names, np.array(numbers), values)
        log_scalars(trainer, self.last, record.step)
        log_details(trainer, self.last_details, record.step, ABOUT)


def _report(
    names: list[str], layer: np.ndarray, values: np.ndarray
) -> tuple[dict[str, float], dict[str, Any]]:
    """Scalars and details of one step.

    Args:
        names: parameters.
        layer: ``(n_weights,)`` block of each, −1 outside of the blocks.
        values: ``(n_weights, 5)``, see :class:`callbacks.trits.TritCounts`.
    """
    scalars: dict[str, float] = {}
    details: dict[str, Any] = {}
    inside = [_quantities(values[layer == number]) for number in sorted({*layer.tolist()} - {-1})]
    outside = _quantities(values[layer == -1]) if (layer == -1).any() else {}
    for quantity, largest in WORST_IS_LARGEST.items():
        key = f"ternary/{quantity}"
        if inside:
            over = np.array([numbers[quantity] for numbers in inside])
            scalars |= over_layers(key, over)
            scalars[f"{key}/worst_layer"] = float(over.argmax() if largest else over.argmin())
            details[key] = over.tolist()
        if outside:
            scalars[f"{key}/outside"] = outside[quantity]
    shares = values[:, :3] / values[:, :3].sum(axis=1, keepdims=True)
    details["ternary/weights"] = {
        name: [*shares[row].tolist(), *values[row, 3:].tolist()] for row, name in enumerate(names)
    }
    return scalars, details


def _quantities(values: np.ndarray) -> dict[str, float]:
    """The quantities of :class:`TernaryHealth` for the weights of one layer."""
    n_trits = values[:, :3].sum()
    negative, zero, positive = values[:, :3].sum(axis=0) / n_trits
    flips = values[:, 4].sum()
    return {
        "negative": float(negative),
        "zero": float(zero),
        "positive": float(positive),
        "scale": float(values[:, 3].mean()),
        "flips": float(flips),
        "flip_share": float(flips / n_trits),
    }
