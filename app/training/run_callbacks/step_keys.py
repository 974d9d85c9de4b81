"""Randomness that belongs to a position, not to a history."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from app.run.randomness import rekey


class StepKeys(Callback):
    """Re-keys every generator from (seed, step, micro-step, rank) before each micro-batch.

    A resumed step thereby draws the same dropout masks as the first one did, on every rank its own.

    Args:
        seed: the run's seed.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Sets the key of this micro-batch."""
        micro_step = batch_idx % trainer.accumulate_grad_batches
        rekey(self.seed, trainer.global_step, micro_step, trainer.global_rank)
