"""What one optimizer step did to the ternary weights of a network."""

from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from app.records import TernaryWeight


class TritCounts(NamedTuple):
    """Counts of one step, per ternary weight.

    Attributes:
        names: parameter names, in the network's order.
        layers: the block of each; None outside of the blocks.
        values: ``(n_weights, 5)`` float64 on the device: trits at −1, at 0 and at +1 after the step, mean scale,
            and trits that the step changed.
    """

    names: list[str]
    layers: list[int | None]
    values: Tensor


class TritWatch:
    """Compares the trits before and after each logged optimizer step; other steps cost nothing.

    Both sides of the comparison belong to the same step, so that there is nothing to keep over a resume.
    """

    def __init__(self) -> None:
        self._before: dict[str, Tensor] = {}

    def before_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """To be called right before the optimizer's step; keeps the trits if that step is a logged one."""
        module: Any = pl_module
        self._before = {}
        if hasattr(module.network, "ternary_weights") and module.is_logged(trainer.global_step + 1):
            # A network may hand out trits that it keeps and overwrites.
            self._before = {name: weight.trits.clone() for name, weight in _weights(module).items()}

    def after_step(self, pl_module: LightningModule) -> TritCounts | None:
        """To be called after a logged step; None where the network has no ternary weights."""
        if not self._before:
            return None
        weights = _weights(pl_module)
        rows = []
        for name, weight in weights.items():
            trits = weight.trits
            counts = [(trits == value).sum() for value in (-1, 0, 1)]
            flips = (trits != self._before[name]).sum()
            wide = torch.float32 if trits.device.type == "mps" else torch.float64
            rows.append(torch.stack([x.to(wide) for x in (*counts, weight.scale.to(wide).mean(), flips)]))
        self._before = {}
        return TritCounts(list(weights), [weight.layer for weight in weights.values()], torch.stack(rows))


def _weights(module: Any) -> dict[str, TernaryWeight]:
    with torch.no_grad():
        return dict(module.network.ternary_weights())
