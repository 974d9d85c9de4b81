"""Checkpoints: what is in one, when one is written, which are kept."""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from app.run import checkpoint as checkpoint_file
from app.run.errors import IntegrityError, StorageError
from app.run.lock import RunLock
from app.training import loops
from app.training.language_model import LanguageModelModule

STATE_KEY = "archlab"


class VerifiedCheckpointIO(CheckpointIO):
    """The framework's way to our files: hashed while written, atomic, verified before anything is loaded."""

    def __init__(self) -> None:
        self._preloaded: dict[Path, dict[str, Any]] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes one checkpoint and its sidecar; :class:`~app.run.errors.StorageError` when it cannot."""
        file = Path(path)
        file.parent.mkdir(exist_ok=True)
        checkpoint_file.write(checkpoint, file)

    def preload(self, path: Path) -> dict[str, Any]:
        """Reads a checkpoint ahead of the framework, which is then given what was read.

        Raises:
            IntegrityError: it is damaged, or none of ours.
        """
        content = checkpoint_file.read(path)
        if not isinstance(content, dict) or STATE_KEY not in content:
            raise IntegrityError(f"{path}: is no checkpoint of a run; name one that app fit has written")
        self._preloaded[path] = content
        return content

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads one verified checkpoint onto the CPU; only tensors and plain values are ever unpickled."""
        file = Path(path)
        if file not in self._preloaded:
            self.preload(file)
        return self._preloaded.pop(file)

    def remove_checkpoint(self, path: Any) -> None:
        """Removes a file and its sidecar."""
        checkpoint_file.remove(Path(path))


class RunState(Callback):
    """Puts the run's own state into every checkpoint and takes it out again.

    Args:
        fingerprint: what a checkpoint must agree with to be resumed: seed, data and tokenizer hashes.
        lock: the run directory's; None on ranks that hold none.
    """

    def __init__(self, fingerprint: dict[str, Any], lock: RunLock | None = None):
        self.fingerprint = fingerprint
        self.lock = lock
        self.validation_pending = False
        self.resumed_step: int | None = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds step, network description and fingerprint; drops the loops' bookkeeping.

        Raises:
            StorageError: another process has taken the run over, while this one was suspended.
        """
        assert isinstance(pl_module, LanguageModelModule)
        if self.lock is not None and self.lock.lost:
            raise StorageError(
                f"{self.lock.directory} was taken over by another process; this one ends unsaved"
            )
        del checkpoint["loops"]
        # There is but one; whether the framework counts it as over depends on the launch.
        checkpoint["epoch"] = 0
        checkpoint[STATE_KEY] = {
            "step": trainer.global_step,
            "validation_pending": self.validation_pending,
            "last_validation": dict(pl_module.last_validation),
            "network": pl_module.network.description(),
            "optimizer": pl_module.optimizer_name,
            **self.fingerprint,
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Places the loops at the checkpoint's step."""
        assert isinstance(pl_module, LanguageModelModule)
        state = checkpoint[STATE_KEY]
        pl_module.last_validation = dict(state["last_validation"])
        self.validation_pending = state["validation_pending"]
        self.resumed_step = state["step"]
        checkpoint["loops"] = {"fit_loop": loops.position(trainer, state["step"])}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes up the validation that the resumed checkpoint still owed."""
        if self.validation_pending:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The validation that was due has been made."""
        self.validation_pending = False


class Keeper(Callback):
    """Base of the keepers: saves one kind of checkpoint into one folder.

    Args:
        directory: the run's checkpoint folder.
        state: the run's state callback.
    """

    kind: str

    def __init__(self, directory: Path, state: RunState):
        self.directory = directory
        self.state = state

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Removes the checkpoints of later steps than the resumed one: their history is given up.

        Now and not with the next save: a kill before that would let the run go on from them.
        """
        resumed = self.state.resumed_step
        if resumed is not None and trainer.is_global_zero:
            for step, file in checkpoint_file.list_checkpoints(self.directory, self.kind):
                if step > resumed:
                    checkpoint_file.remove(file)

    def save(self, trainer: Trainer, step: int, validation_pending: bool) -> None:
        """Saves, all ranks taking part; what the loggers hold is made durable first."""
        for logger in trainer.loggers:
            logger.save()
        self.state.validation_pending = validation_pending
        trainer.save_checkpoint(self.directory / f"{self.kind}-{step:06d}.ckpt")
        if trainer.is_global_zero:
            self.forget(step)

    def forget(self, step: int) -> None:
        """Removes what the checkpoint of this step made superfluous."""
        raise NotImplementedError

    @property
    def state_key(self) -> str:
        """Distinct per kind."""
        return f"archlab.{self.kind}"


class RollingKeeper(Keeper):
    """Keeps the last two ``resume-<step>.ckpt``, and always one of the last step.

    Args:
        directory: the run's checkpoint folder.
        state: the run's state callback.
        every_n_steps: optimizer steps between two checkpoints, >= 1.
    """

    kind = "resume"

    def __init__(self, directory: Path, state: RunState, every_n_steps: int):
        super().__init__(directory, state)
        self.every_n_steps = every_n_steps

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Saves at every n-th step; a validation due at that step is then still owed."""
        record = outputs["record"]
        if record.is_last_micro and (
            record.step % self.every_n_steps == 0 or record.step == trainer.max_steps
        ):
            self.save(trainer, record.step, validation_due(trainer, record.step))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replaces the last step's checkpoint by one whose validation is made."""
        self.save(trainer, trainer.global_step, False)

    def forget(self, step: int) -> None:
        """Later files stem from a history that was given up; of the others the newest two stay."""
        for later, file in checkpoint_file.list_checkpoints(self.directory, self.kind):
            if later > step:
                checkpoint_file.remove(file)
        checkpoint_file.prune(self.directory, self.kind, keep=2)


class BestKeeper(Keeper):
    """Keeps the one ``best-<step>.ckpt`` with the lowest ``val/loss``."""

    kind = "best"

    def __init__(self, directory: Path, state: RunState):
        super().__init__(directory, state)
        self.best_loss = float("inf")
        self.best_step = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Also forgets a best loss whose checkpoint a later one, now given up, has replaced."""
        super().on_fit_start(trainer, pl_module)
        file = self.directory / checkpoint_file.best_name(self.best_step)
        # Rank zero looks, for all: whether to save must be decided alike everywhere.
        if self.best_step and not trainer.strategy.broadcast(file.exists()):
            self.best_loss, self.best_step = float("inf"), 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves when the loss fell; a loss that is not finite is never best."""
        assert isinstance(pl_module, LanguageModelModule)
        loss = pl_module.last_validation["val/loss"]
        if loss < self.best_loss:
            self.best_loss, self.best_step = loss, trainer.global_step
            self.save(trainer, trainer.global_step, False)

    def forget(self, step: int) -> None:
        """Only the best one stays."""
        for other, file in checkpoint_file.list_checkpoints(self.directory, self.kind):
            if other != step:
                checkpoint_file.remove(file)

    def state_dict(self) -> dict[str, Any]:
        """The best loss so far and its step."""
        return {"best_loss": self.best_loss, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes them back."""
        self.best_loss, self.best_step = state_dict["best_loss"], state_dict["best_step"]


def validation_due(trainer: Trainer, step: int) -> bool:
    """Whether the loop validates right after this step."""
    return trainer.enable_validation and (
        step >= trainer.max_steps or step % int(trainer.val_check_interval or 1) == 0
    )
