"""``status.json`` follows the run."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from app.run.directory import RunDirectory
from app.run.status import write_status


class StatusFile(Callback):
    """Says ``running`` with the step at which a checkpoint was last begun; rank zero writes.

    How the run ends is written by whoever catches the end.

    Args:
        directory: the run's.
    """

    def __init__(self, directory: RunDirectory):
        self.directory = directory

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first step comes next."""
        self._write(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Updates the step."""
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            write_status(self.directory.status, "running", trainer.global_step)
