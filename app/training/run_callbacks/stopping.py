"""Orderly stops: a signal ends the run after the step it fell into, with a checkpoint, on every rank."""

import signal
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from app.run.errors import AppError, ExitCode
from app.run.signals import StopRequests, exit_code_of
from app.training.run_callbacks.retention import LatestCheckpoints, validation_due


class StopRun(AppError):
    """Ends the run in an orderly way; carries the exit code of the signal.

    Args:
        code: exit code.
        step: completed optimizer steps.
        reason: what asked for the stop.
    """

    def __init__(self, code: ExitCode, step: int, reason: str):
        super().__init__(f"stopped by {reason} after step {step}")
        self.exit_code = code
        self.step = step
        self.reason = reason


class StopOnSignal(Callback):
    """Saves and leaves after SIGTERM, SIGUSR1, SIGHUP or SIGINT.

    Alone, a process looks at its own flag after every step. Several ranks must leave after the same step, so
    they exchange their flags on the host; rank zero proposes with each exchange how many ticks to let pass
    until the next, about a second's worth, and all of them count the same ticks.

    Args:
        requests: the process's signal handlers.
        keeper: saves the checkpoint that the run leaves with.
    """

    exchange_seconds = 1.0

    def __init__(self, requests: StopRequests, keeper: LatestCheckpoints):
        self.requests = requests
        self.keeper = keeper
        self._group: Any = None
        self._ticks_left = 1
        self._ticks_proposed = 1
        self._exchanged_at = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the host-side group; every rank takes part."""
        if trainer.world_size > 1:
            self._group = torch.distributed.new_group(backend="gloo")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handlers that others have set since are replaced."""
        self.requests.reinstall()
        self._exchanged_at = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Leaves after a whole optimizer step only.

        The first micro-batch that is made may have been compiled for minutes, and nothing is lost with it; from its
        end on a step is worth finishing.
        """
        self.requests.tick()
        record = outputs["record"]
        if record.is_last_micro and (asked := self._agreed(trainer)):
            self._leave(trainer, asked, validation_due(trainer, record.step))

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Gives up a validation under way; the resumed run makes all of it."""
        if trainer.training or trainer.state.fn == "fit":
            self.requests.tick()
            asked = self._agreed(trainer)
            if asked:
                self._leave(trainer, asked, True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The steps are made; what follows is not measured by them."""
        self.requests.patience.restart()

    def _leave(self, trainer: Trainer, asked: int, validation_pending: bool) -> None:
        step = trainer.global_step
        self.keeper.save(trainer, step, validation_pending)
        raise StopRun(exit_code_of(asked), step, signal.Signals(asked).name)

    def _agreed(self, trainer: Trainer) -> int:
        """The signal number that some rank was sent, 0 if none; the same on every rank."""
        own = int(self.requests.requested or 0)
        if self._group is None:
            return own
        self._ticks_left -= 1
        if self._ticks_left > 0:
            return 0
        now = time.monotonic()
        per_tick = (now - self._exchanged_at) / self._ticks_proposed
        proposal = max(1, int(self.exchange_seconds / max(per_tick, 1e-6))) if trainer.is_global_zero else 0
        exchanged = torch.tensor([own, proposal])
        torch.distributed.all_reduce(exchanged, op=torch.distributed.ReduceOp.MAX, group=self._group)
        asked, self._ticks_proposed = (int(value) for value in exchanged)
        self._ticks_left, self._exchanged_at = self._ticks_proposed, time.monotonic()
        return asked
