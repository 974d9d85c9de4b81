"""The final figures of a run."""

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from app.run.atomic import write_json
from app.run.directory import RunDirectory
from app.training.curve import TrainingCurve
from app.training.keepers import BestKeeper
from app.training.language_model import LanguageModelModule


class RunSummary(Callback):
    """Writes ``summary.json`` when the last step and its validation are done.

    Two yardsticks stand beside the losses, so that a figure means something on a text nobody has seen: the
    loss of an add-one bigram counted on the training split, and the share of generated words that the text
    really contains. The words are those of continuations of evenly spaced places of the validation split.

    Args:
        directory: the run's.
        curve: where the last training objective stands.
        best: where the best validation stands.
        n_samples: texts to generate, with seed 0.
        n_tokens: length of each, after a prompt of half a window.
        temperature: of the samples.
    """

    def __init__(
        self,
        directory: RunDirectory,
        curve: TrainingCurve,
        best: BestKeeper,
        n_samples: int = 16,
        n_tokens: int = 200,
        temperature: float = 0.7,
    ):
        self.directory = directory
        self.curve = curve
        self.best = best
        self.n_samples = n_samples
        self.n_tokens = n_tokens
        self.temperature = temperature
        self.figures: dict[str, Any] = {}
        self._started = 0.0
        self._first_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock of this launch."""
        self._started, self._first_step = time.monotonic(), trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the yardsticks and writes the file."""
        assert isinstance(pl_module, LanguageModelModule)
        if not trainer.is_global_zero:
            return
        seconds = time.monotonic() - self._started
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        steps = trainer.global_step - self._first_step
        texts = pl_module.generate_texts(
            data.validation_prompts(self.n_samples, data.block_size // 2),
            max_new_tokens=self.n_tokens,
            temperature=self.temperature,
            seed=0,
        )
        words = data.known_words(texts)
        counts = pl_module.network.parameter_counts()
        self.figures = {
            "step": trainer.global_step,
            "tokens_seen": trainer.global_step * data.tokens_per_step,
            "parameters": counts["trainable"] + counts["frozen"],
            **{f"parameters/{kind}": count for kind, count in counts.items()},
            **{key: self.curve.last[key] for key in ("train/loss", "train/bpb") if key in self.curve.last},
            **pl_module.last_validation,
            "best/val_loss": self.best.best_loss if self.best.best_step else None,
            "best/step": self.best.best_step or None,
            "baseline/bigram_loss": data.bigram_loss(),
            "samples/known_word_share": words.share,
            "samples/n_words": words.n_words,
            "samples/temperature": self.temperature,
            "launch/steps": steps,
            "launch/seconds": seconds,
            "launch/tokens_per_second": steps * data.tokens_per_step / max(seconds, 1e-9),
            "launch/device": str(pl_module.device),
            "launch/threads": torch.get_num_threads(),
        }
        write_json(self.directory.summary, self.figures)
