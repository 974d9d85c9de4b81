"""The training curve."""

import csv
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from app.training.evaluation_steps import LN2
from app.training.language_model import LanguageModelModule


class TrainingCurve(Callback):
    """Logs the objective of every logged optimizer step.

    Each value is that of the one step, over all its micro-batches and ranks, so that a resumed run needs no
    history to continue the curve.

    Keys:
        ``train/loss``: cross-entropy, nats per token.
        ``train/bpb``: the same in bits per byte of text, where the tokens hold all of it.
        ``train/aux_loss``: weighted auxiliary loss.
        ``train/grad_norm``: global gradient norm before clipping.
        ``train/lr``: learning rate of the step.
        ``tokens_seen``: training tokens up to and including the step.
        ``speed/seconds``: seconds spent on training up to and including the step, over all launches and without
            validation, what follows it, and start-up.

    Args:
        seconds: spent by the launches before this one, see :func:`seconds_trained`. They are no part of the
            state: checkpoints of two equal runs are equal to the bit.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.last: dict[str, float] = {}
        self._seconds = seconds
        self._since: float | None = None  # the clock stands still before the first batch and in validation
        self._losses: list[torch.Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        """The last logged values: a run that is resumed after its last step still has figures to report."""
        return {"last": dict(self.last)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last = dict(state_dict["last"])

    def on_train_batch_start(self, *_: Any) -> None:
        if self._since is None:
            self._since = time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock, once the device has done what training gave it."""
        if self._since is not None:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize(pl_module.device)
            self._seconds, self._since = self._elapsed(), None

    def _elapsed(self) -> float:
        return self._seconds + (0.0 if self._since is None else time.monotonic() - self._since)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Adds the micro-batch; logs after the step's last one, with a single transfer."""
        record = outputs["record"]
        if not record.is_logged:
            return
        self._losses.append(torch.stack([record.output.loss.float(), record.output.aux_loss.float()]))
        if not record.is_last_micro:
            return
        assert isinstance(pl_module, LanguageModelModule) and pl_module.gradient_norm is not None
        losses = torch.stack(self._losses).mean(dim=0)
        self._losses = []
        if trainer.world_size > 1:
            torch.distributed.all_reduce(losses)
            losses = losses / trainer.world_size
        loss, auxiliary, norm = torch.cat([losses, pl_module.gradient_norm.float()[None]]).tolist()
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        n_bytes = pl_module.bytes_per_token
        self.last = {
            "train/loss": loss,
            **({} if n_bytes is None else {"train/bpb": loss / LN2 / n_bytes}),
            "train/aux_loss": auxiliary,
            "train/grad_norm": norm,
            "train/lr": pl_module.current_learning_rate(record.step - 1),
            "tokens_seen": float(data.tokens_seen(record.step)),
        }
        # For callbacks: one value, since each that the framework keeps costs 0.4 ms where it is logged.
        pl_module.log("train/loss", losses[0], logger=False, on_step=True, on_epoch=False)
        for logger in trainer.loggers:
            logger.log_metrics(self.last | {"speed/seconds": self._elapsed()}, step=record.step)


def seconds_trained(metrics: Path, step: int) -> float:
    """Seconds that a run had spent on training at a step; after the last logged one, as fast as between the last two.

    Args:
        metrics: its ``metrics.csv``.
        step: completed optimizer steps; 0 of a run that has not begun.

    Returns:
        0 where nothing is recorded.
    """
    before, last = (0, 0.0), (0, 0.0)
    try:
        with metrics.open(newline="", encoding="utf-8", errors="replace") as file:
            for row in csv.DictReader(file):
                try:
                    logged, seconds = int(row["step"]), float(row["speed/seconds"])
                except (KeyError, TypeError, ValueError):
                    continue  # a validation's row, or what a crash has left of one
                if 0 < logged <= step:
                    before, last = last, (logged, seconds)
    except OSError:
        return 0.0
    rate = (last[1] - before[1]) / max(last[0] - before[0], 1)
    return last[1] + rate * (step - last[0])
