"""Checkpoints: what is in one, when one is written, which are kept."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from app.run import checkpoint as checkpoint_file
from app.run.lock import HEARTBEAT_SECONDS, RunLock
from app.run.saved_state import STATE_KEY, saved_state
from app.run.signals import saving
from app.run.storage import writing
from app.training import lightning_seams
from app.training.language_model import LanguageModelModule
from app.training.logging.loggers import RunFilesLogger
from app.training.run_callbacks.weight_averaging import held_weights


class VerifiedCheckpointIO(CheckpointIO):
    """The framework's way to our files: hashed while written, atomic, verified before anything is loaded.

    Args:
        lock: the run directory's, which is asked once more when a new file is about to take its place; None
            on ranks that hold none.
    """

    def __init__(self, lock: RunLock | None = None) -> None:
        self.lock = lock
        self._preloaded: dict[Path, dict[str, Any]] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes one checkpoint and its sidecar; :class:`~app.run.errors.StorageError` when it cannot."""
        file = Path(path)
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        with saving():
            checkpoint_file.write(checkpoint, file, self.lock.check if self.lock else lambda: None)

    def preload(self, path: Path) -> dict[str, Any]:
        """Reads a checkpoint ahead of the framework, which is then given what was read.

        Raises:
            IntegrityError: it is damaged, or none of ours.
        """
        content: dict[str, Any] = checkpoint_file.read(path)
        saved_state(content, path)
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
        described: what the run is: seed, data and tokenizer hashes, resolved configuration, and where it computes.
        lock: the run directory's; None on ranks that hold none.
    """

    def __init__(self, described: dict[str, Any], lock: RunLock | None = None):
        self.described = described
        self.lock = lock
        self.validation_pending = False
        self.resumed_step: int | None = None

    def check_lock(self, trusted_seconds: float = 0.0) -> None:
        """Ends a launch whose run another process has taken over, see :meth:`RunLock.check`."""
        if self.lock is not None:
            self.lock.check(trusted_seconds)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Looks after the lock when the heartbeat has not done so lately: this process was stopped.

        Otherwise its first steps would still be added to the other process's metrics.
        """
        self.check_lock(trusted_seconds=2 * HEARTBEAT_SECONDS)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds position, network description and what the run is; drops the loops' bookkeeping."""
        assert isinstance(pl_module, LanguageModelModule)
        del checkpoint["loops"]
        # There is but one; whether the framework counts it as over depends on the launch.
        checkpoint["epoch"] = 0
        checkpoint[STATE_KEY] = {
            "format": checkpoint_file.FORMAT,
            "step": trainer.global_step,
            "windows_seen": trainer.datamodule.windows_seen(trainer.global_step),  # type: ignore[attr-defined]
            "validation_pending": self.validation_pending,
            "last_validation": dict(pl_module.last_validation),
            "network": pl_module.network.description(),
            "optimizer": pl_module.optimizer_name,
            **held_weights(trainer),
            "running_hashes": _running_hashes(trainer),
            **self.described,
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
        checkpoint["loops"] = {"fit_loop": lightning_seams.position(trainer, state["step"])}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes up the validation that the resumed checkpoint still owed."""
        if self.validation_pending:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """A validation that is due is owed by whatever is saved before it, by whom ever."""
        record = outputs["record"]
        if record.is_last_micro:
            self.validation_pending = validation_due(trainer, record.step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The validation that was due has been made."""
        self.validation_pending = False


class CheckpointRetention(Callback):
    """Base of both: saves one kind of checkpoint into one folder.

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
            self.state.check_lock()
            for step, file in checkpoint_file.list_checkpoints(self.directory, self.kind):
                if step > resumed:
                    checkpoint_file.remove(file)

    def save(self, trainer: Trainer, step: int, validation_pending: bool) -> None:
        """Saves, all ranks taking part; what the loggers hold is made durable first.

        Raises:
            StorageError: it cannot be written, or another process has taken the run over.
        """
        self.state.check_lock()
        for logger in trainer.loggers:
            logger.save()
        self.state.validation_pending = validation_pending
        # Rank zero writes, and is at work only while it does; the others wait for it.
        with nullcontext() if trainer.is_global_zero else saving():
            trainer.save_checkpoint(self.directory / f"{self.kind}-{step:06d}.ckpt")
        if trainer.is_global_zero:
            self.state.check_lock()
            self.forget(step)

    def forget(self, step: int) -> None:
        """Removes what the checkpoint of this step made superfluous."""
        raise NotImplementedError

    @property
    def state_key(self) -> str:
        """Distinct per kind."""
        return f"archlab.{self.kind}"


class LatestCheckpoints(CheckpointRetention):
    """Keeps the last two ``resume-<step>.ckpt``, always one of the last step, and those that are to stay.

    Args:
        directory: the run's checkpoint folder.
        state: the run's state callback.
        every_n_steps: optimizer steps between two checkpoints, >= 1.
        keep_every_n_steps: those of every n-th step stay; 0 for none.
    """

    kind = "resume"

    def __init__(self, directory: Path, state: RunState, every_n_steps: int, keep_every_n_steps: int = 0):
        super().__init__(directory, state)
        self.every_n_steps = every_n_steps
        self.keep_every_n_steps = keep_every_n_steps

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Saves at every n-th step; a validation due at that step is then still owed."""
        record = outputs["record"]
        step = record.step
        is_due = step % self.every_n_steps == 0 or step == trainer.max_steps or self._stays(step)
        if record.is_last_micro and is_due:
            self.save(trainer, record.step, validation_due(trainer, record.step))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replaces the last step's checkpoint by one whose validation is made."""
        self.save(trainer, trainer.global_step, False)

    def forget(self, step: int) -> None:
        """Later files stem from a history that was given up; of the others the newest two stay."""
        for later, file in checkpoint_file.list_checkpoints(self.directory, self.kind):
            if later > step:
                checkpoint_file.remove(file)
        checkpoint_file.prune(self.directory, self.kind, keep=2, stays=self._stays)

    def _stays(self, step: int) -> bool:
        return self.keep_every_n_steps > 0 and step % self.keep_every_n_steps == 0


class BestCheckpoint(CheckpointRetention):
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
        self.best_loss, self.best_step = state_dict["best_loss"], state_dict["best_step"]


def _running_hashes(trainer: Trainer) -> dict[str, Any]:
    """Those of the run's files; none where nothing is logged."""
    files = [logger for logger in trainer.loggers if isinstance(logger, RunFilesLogger)]
    # Rank zero alone writes these files, and the checkpoint.
    return (files[0].running_hashes() or {}) if files else {}


def validation_due(trainer: Trainer, step: int) -> bool:
    """Whether the loop validates right after this step."""
    return trainer.enable_validation and (
        step >= trainer.max_steps or trainer.should_stop or step % int(trainer.val_check_interval or 1) == 0
    )
