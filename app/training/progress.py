"""What a person sees while a run goes on: one bar on a terminal, plain lines anywhere else."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from app.training.curve import TrainingCurve
from app.training.language_model import LanguageModelModule


class RunProgress(ProgressBar):
    """Shows step, loss, validation loss, bits per byte and tokens per second; on texts of words their perplexity.

    It reads only what was logged, so that it never costs a step a transfer.

    Args:
        curve: where the last logged objective stands.
        plain: lines instead of a bar; by default whether standard output is no terminal.
        line_seconds: with lines, the shortest time between two of them.
    """

    def __init__(self, curve: TrainingCurve, plain: bool | None = None, line_seconds: float = 5.0):
        super().__init__()
        self.curve = curve
        self.plain = not sys.stdout.isatty() if plain is None else plain
        self.line_seconds = line_seconds
        self._progress: Progress | None = None
        self._task: TaskID | None = None
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
        """Shows again."""
        self._enabled = True

    _enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar."""
        self._start_step, self._start_time = trainer.global_step, time.monotonic()
        if self._enabled and trainer.is_global_zero and not self.plain:
            self._progress = Progress(
                TextColumn("[bold]{task.completed}/{task.total}"),
                BarColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=Console(file=sys.stdout),
                refresh_per_second=4,
            )
            self._progress.start()
            self._task = self._progress.add_task(
                "fit", total=trainer.max_steps, completed=trainer.global_step, figures=""
            )

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Moves the bar, or prints a line when one is due."""
        record = outputs["record"]
        if not (record.is_last_micro and trainer.is_global_zero and self._enabled):
            return
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=record.step, figures=self.figures(trainer, pl_module))
            return
        now = time.monotonic()
        first = record.step == self._start_step + 1
        if record.is_logged and (
            first or record.step == trainer.max_steps or now - self._line_at >= self.line_seconds
        ):
            self._line_at = now
            left = (
                (trainer.max_steps - record.step)
                * (now - self._start_time)
                / (record.step - self._start_step)
            )
            print(
                f"step {record.step:>6}/{trainer.max_steps}  {self.figures(trainer, pl_module)}  left {clock(left)}",
                flush=True,
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation time is no training time."""
        self._validation_start = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the validation where there is no bar to show it."""
        self._validation_seconds += time.monotonic() - self._validation_start
        assert isinstance(pl_module, LanguageModelModule)
        if trainer.is_global_zero and self._enabled and self.plain and trainer.state.fn == "fit":
            figures = pl_module.last_validation
            print(
                f"step {trainer.global_step:>6}/{trainer.max_steps}  validation  loss {figures['val/loss']:.4f} nats  "
                f"bpb {figures['val/bpb']:.4f}{word_perplexity(figures)}",
                flush=True,
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the bar."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Closes the bar, so that the message that follows stands alone."""
        self._close()

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def figures(self, trainer: Trainer, pl_module: LightningModule) -> str:
        """The figures beside the bar."""
        assert isinstance(pl_module, LanguageModelModule)
        parts = []
        if "train/loss" in self.curve.last:
            parts.append(f"loss {self.curve.last['train/loss']:.4f}")
        if "val/loss" in pl_module.last_validation:
            parts.append(
                f"val {pl_module.last_validation['val/loss']:.4f}  bpb {pl_module.last_validation['val/bpb']:.4f}"
                + word_perplexity(pl_module.last_validation)
            )
        seconds = time.monotonic() - self._start_time - self._validation_seconds
        steps = trainer.global_step - self._start_step
        tokens = steps * trainer.datamodule.tokens_per_step  # type: ignore[attr-defined]
        parts.append(f"{tokens / max(seconds, 1e-9):,.0f} tokens/s")
        return "  ".join(parts)


def word_perplexity(figures: Mapping[str, float]) -> str:
    """That of a validation, where the data counts words."""
    return f"  word ppl {figures['val/word_perplexity']:.1f}" if "val/word_perplexity" in figures else ""


def clock(seconds: float) -> str:
    """``75`` → ``1:15``; ``4000`` → ``1:06:40``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
