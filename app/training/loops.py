"""One endless stream of optimizer steps, on the framework's own loops.

The framework thinks in epochs and batches; here the optimizer step is the only position. These subclasses
decide three things by the step alone: when to validate, whether a resumed run still has something to do, and
where a resumed run stands. They replace the framework's restart bookkeeping, whose outcome depends on the
hook in which a checkpoint was written.
"""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop


class StepLoop(_TrainingEpochLoop):
    """Validates every ``val_check_interval`` optimizer steps and after the last one."""

    _start = 0

    def reset(self) -> None:
        """Notes the step that this launch goes on from."""
        super().reset()
        self._start = self.global_step

    def _should_check_val_fx(self, data_fetcher: Any) -> bool:
        # A resumed loop asks before its first step too; a validation still owed is run at the start instead.
        step = self.global_step
        if step == self._start or not self.trainer.enable_validation or self._should_accumulate():
            return False
        return step >= self.max_steps or step % int(self.trainer.val_check_interval) == 0

    def _broadcast_sigterm_tensor(self) -> None:
        """Nothing: stops are agreed at most once a second, on the host, by the stop callback."""


class StepFitLoop(_FitLoop):
    """Runs its hooks even when no step is left, so that an owed last validation can be made up."""

    def __init__(self, trainer: Trainer, max_epochs: int | None) -> None:
        super().__init__(trainer, min_epochs=None, max_epochs=max_epochs)
        self.epoch_loop = StepLoop(trainer, min_steps=None, max_steps=trainer.max_steps)

    @property
    def skip(self) -> bool:
        """Never; ``done`` alone ends the loop."""
        return False


def install(trainer: Trainer) -> None:
    """Puts the step loops in place of the trainer's own, before anything runs."""
    trainer.fit_loop = StepFitLoop(trainer, trainer.fit_loop.max_epochs)


def position(trainer: Trainer, step: int) -> dict[str, Any]:
    """State of the fit loop as it stands right after ``step`` optimizer steps of the first epoch.

    A checkpoint holds the step and nothing else of the loops; this builds the rest at load time, for the
    accumulation that the resumed run uses.
    """
    state: dict[str, Any] = trainer.fit_loop.state_dict()
    n_batches = step * trainer.accumulate_grad_batches
    for span in ("total", "current"):
        state["epoch_progress"][span].update(ready=1, started=1, processed=0, completed=0)
        state["epoch_loop.batch_progress"][span].update(
            ready=n_batches, started=n_batches, processed=n_batches, completed=n_batches
        )
        optimizer = state["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
        optimizer["step"][span].update(ready=step, completed=step)
        optimizer["zero_grad"][span].update(ready=step, started=step, completed=step)
    state["epoch_loop.batch_progress"]["is_last_batch"] = False
    state["epoch_loop.state_dict"]["_batches_that_stepped"] = step
    return state
