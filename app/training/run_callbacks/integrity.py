"""What happens when memory or a computation turns out not to be right."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from app.run.errors import ConfigurationError, IntegrityError
from app.training.distributed import SupervisedDDPStrategy
from app.training.guards import Guards
from app.training.language_model import LanguageModelModule
from app.training.repeated_steps import RepeatedSteps
from app.training.reproducible import is_reproducible
from app.training.run_callbacks.weight_averaging import RunAveraging

#: methods in which a module asks its guards
ASKING = ("training_step", "on_before_optimizer_step", "optimizer_step", "after_optimizer_step")


class IntegrityStop(Callback):
    """Gives a module its guards, reads them where the run logs or saves, and ends the run where they found something.

    No update is made from the first difference on, and no state behind it is saved. Stands before
    :class:`NonFiniteStop`: a flipped bit may well be what made a loss infinite.

    Args:
        seed: the run's.
        checkpoints: the run's checkpoint folder, to name the last good one.
        verify_state: whether what lies in memory is compared before each update.
        verify_every_n_steps: steps between two that are made twice; 0 for none.
    """

    def __init__(self, seed: int, checkpoints: Path, verify_state: bool, verify_every_n_steps: int):
        self.checkpoints = checkpoints
        repeated = RepeatedSteps(verify_every_n_steps, seed) if verify_every_n_steps else None
        self.guards = Guards(verify_state, repeated)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hands the guards over.

        Raises:
            ConfigurationError: the module would not ask them, or steps cannot be made twice to the same bits.
        """
        is_whole = trainer.world_size == 1 or isinstance(trainer.strategy, SupervisedDDPStrategy)
        if self.guards.repeated is not None and not is_whole:
            raise ConfigurationError(
                f"verify_every_n_steps: steps are made twice by one process or data parallel, not by "
                f"{type(trainer.strategy).__name__}; leave one of them out"
            )
        if self.guards.repeated is not None and not is_reproducible(trainer.strategy.root_device):
            raise ConfigurationError(
                "verify_every_n_steps: with fast_nondeterministic equal steps have other bits; leave one of them out"
            )
        assert isinstance(pl_module, LanguageModelModule)
        for name in ASKING:
            if getattr(type(pl_module), name) is not getattr(LanguageModelModule, name):
                raise ConfigurationError(
                    f"verify_state, verify_every_n_steps: {type(pl_module).__name__} has a {name} of its own, which "
                    "asks no guard; leave them out"
                )
        pl_module.guards = self.guards

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on everything has to stay as it is."""
        self.guards.begin(pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Looks at every logged step."""
        record = outputs["record"]
        if record.is_logged and record.is_last_micro:
            self._end(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What is validated is what was trained."""
        self._check(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation leaves all but the buffers as they are."""
        self.guards.begin_after_validation()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """A state that is not what the last update left is never saved."""
        self._check(trainer, pl_module)

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        is_average = any(isinstance(each, RunAveraging) and each.is_swapped for each in callbacks)
        self.guards.check(pl_module, weights_too=not is_average)
        self._end(trainer)

    def _end(self, trainer: Trainer) -> None:
        step, found = self.guards.findings()
        if not found:
            return
        names = sorted(file.name for file in self.checkpoints.glob("resume-*.ckpt"))
        where = f"step {step}" if step else f"a step up to {trainer.global_step}"
        raise IntegrityError(
            f"before the update of {where}: {'; '.join(found)}; no update was made from it\n"
            f"last good checkpoint: {names[-1] if names else 'none yet'}; go on from it with --resume auto, on another "
            "device where this happens again"
        )
