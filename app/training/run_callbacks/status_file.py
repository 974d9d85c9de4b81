"""``status.json`` follows the run."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from app.run.directory import RunDirectory
from app.run.lock import RunLock
from app.run.status import write_status


class StatusFile(Callback):
    """Says ``running`` with the step at which a checkpoint was last begun; rank zero writes.

    How the run ends is written by whoever catches the end.

    Args:
        directory: the run's.
        lock: the directory's, without which nothing is written; None on ranks that hold none.
    """

    def __init__(self, directory: RunDirectory, lock: RunLock | None = None):
        self.directory = directory
        self.lock = lock

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first step comes next."""
        self._write(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            if self.lock is not None:
                self.lock.check()
            write_status(self.directory.status, "running", trainer.global_step)
