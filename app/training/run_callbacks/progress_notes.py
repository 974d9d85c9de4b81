"""Progress that ranks see of each other."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from app.training.hang_watch import HangWatch


class ProgressNotes(Callback):
    """Notes each micro-batch, validation batch and checkpoint, see :class:`app.training.hang_watch.HangWatch`.

    It does nothing where there is one process.
    """

    def _note(self, trainer: Trainer, phase: str) -> None:
        watch: HangWatch | None = getattr(trainer.strategy, "watch", None)
        if watch is not None:
            watch.note(trainer.global_step, phase)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """From the first micro-batch on, which may have been compiled for long."""
        self._note(trainer, "training")

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._note(trainer, "validation")

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._note(trainer, "test")

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._note(trainer, "saving a checkpoint")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What follows, rank zero does alone."""
        self._note(trainer, "")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note(trainer, "training" if trainer.state.fn == "fit" else "")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note(trainer, "")
