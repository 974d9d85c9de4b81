"""What a person sees while a run goes on: a display on a terminal, plain lines anywhere else."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.live import Live

from app.records import HoldsFindings
from app.run.terminal import clock, is_live
from app.training.language_model import LanguageModelModule
from app.training.run_callbacks.curve import TrainingCurve
from app.training.run_callbacks.display import Display


class RunProgress(ProgressBar):
    """Shows step, loss, validation loss, bits per byte, tokens per second, time left and open findings.

    On texts of words also their perplexity. It reads only what was logged, so that it never costs a step a transfer.

    Args:
        curve: where the last logged objective stands.
        plain: lines instead of a display; by default whether standard output is no terminal that can be drawn on.
        line_seconds: with lines, the shortest time between two of them.
    """

    def __init__(self, curve: TrainingCurve, plain: bool | None = None, line_seconds: float = 5.0):
        super().__init__()
        self.curve = curve
        self.plain = not is_live() if plain is None else plain
        self.line_seconds = line_seconds
        self.display = Display()
        self._live: Live | None = None
        self._line_at = 0.0
        self._start_step = 0
        self._start_time = 0.0
        self._validation_seconds = 0.0
        self._validation_start = 0.0

    def disable(self) -> None:
        """Ranks other than zero show nothing."""
        self.plain = True
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    _enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_step, self._start_time = trainer.global_step, time.monotonic()
        if self._enabled and trainer.is_global_zero and not self.plain:
            self.display = Display(trainer.global_step, trainer.max_steps)
            self._live = Live(self.display, console=Console(file=sys.stdout), refresh_per_second=4)
            self._live.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Moves the bar, or prints a line when one is due."""
        record = outputs["record"]
        if not (record.is_last_micro and trainer.is_global_zero and self._enabled):
            return
        now = time.monotonic()
        left = (trainer.max_steps - record.step) * (now - self._start_time) / (record.step - self._start_step)
        if self._live is not None:
            self.display.step, self.display.seconds_left = record.step, left
            self.display.figures = self.figures(trainer, pl_module)
            self.display.health = _health(trainer)
            return
        first = record.step == self._start_step + 1
        if record.is_logged and (
            first or record.step == trainer.max_steps or now - self._line_at >= self.line_seconds
        ):
            self._line_at = now
            figures = "  ".join(self.figures(trainer, pl_module))
            print(
                f"step {record.step:>6}/{trainer.max_steps}  {figures}  left {clock(left)}",
                flush=True,
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation time is no training time."""
        self._validation_start = time.monotonic()
        self.display.doing = "validating"

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Says how far a validation is, which of a large split takes a while."""
        n_batches = trainer.num_val_batches
        n_all = n_batches[0] if isinstance(n_batches, list) else n_batches
        self.display.doing = f"validating, batch {batch_idx + 1:,}" + (f" of {n_all:,}" * (n_all < 1e9))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the validation; on a terminal it stays above the display."""
        self._validation_seconds += time.monotonic() - self._validation_start
        self.display.doing = ""
        assert isinstance(pl_module, LanguageModelModule)
        if trainer.is_global_zero and self._enabled and trainer.state.fn == "fit":
            figures = pl_module.last_validation
            print(
                f"step {trainer.global_step:>6}/{trainer.max_steps}  validation  loss {figures['val/loss']:.4f} nats"
                f"{beside_loss(figures)}",
                flush=True,
            )
            if self._live is not None:
                self.display.figures = self.figures(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Closes the display, so that the message that follows stands alone."""
        self._close()

    def _close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def figures(self, trainer: Trainer, pl_module: LightningModule) -> list[str]:
        """The figures of now, each with its name."""
        assert isinstance(pl_module, LanguageModelModule)
        parts = []
        if "train/loss" in self.curve.last:
            parts.append(f"loss {self.curve.last['train/loss']:.4f}")
        if "val/loss" in pl_module.last_validation:
            parts.append(
                f"val {pl_module.last_validation['val/loss']:.4f}{beside_loss(pl_module.last_validation)}"
            )
        seconds = time.monotonic() - self._start_time - self._validation_seconds
        steps = trainer.global_step - self._start_step
        tokens = steps * trainer.datamodule.tokens_per_step  # type: ignore[attr-defined]
        parts.append(f"{tokens / max(seconds, 1e-9):,.0f} tokens/s")
        return parts


def _health(trainer: Trainer) -> str | None:
    """What the watchers of this run find wrong now, by condition; None where none looks."""
    watchers = [c for c in trainer.callbacks if isinstance(c, HoldsFindings)]  # type: ignore[attr-defined]
    if not watchers:
        return None
    counts: dict[str, int] = {}
    for finding in (finding for watcher in watchers for finding in watcher.open_findings().values()):
        counts[str(finding["condition"])] = counts.get(str(finding["condition"]), 0) + 1
    return ", ".join(f"{name} ({count})" for name, count in counts.items())


def beside_loss(figures: Mapping[str, float]) -> str:
    """What a validation says beside its loss, as far as it means something."""
    found = f"  bpb {figures['val/bpb']:.4f}" if "val/bpb" in figures else ""
    if "val/word_perplexity" in figures:
        found += f"  word ppl {figures['val/word_perplexity']:.1f}"
    if figures.get("val/unknown_share"):
        found += f"  unknown {figures['val/unknown_share']:.2%}"
    return found
