"""A watcher that logs one value. What a network reports about itself is read by a `MeasureWatcher` instead."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch.nn.utils import get_total_norm

from callbacks.watcher import Watcher, log_scalars, step_record


class WeightNorm(Watcher):
    """Follows how large the weights are.

    Logged keys:

    - ``weights/norm``: root of the sum of squares of all parameters, ≥ 0

    Attributes:
        last: the newest value.
    """

    def __init__(self) -> None:
        self.last = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        record = step_record(outputs)
        if not (record.is_logged and record.is_last_micro):
            return  # between logged steps nothing is computed
        self.last = get_total_norm(parameter.detach() for parameter in pl_module.parameters()).item()
        log_scalars(trainer, {"weights/norm": self.last}, record.step)
