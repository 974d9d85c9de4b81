"""The final figures of a run."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from app.run.atomic import write_json
from app.run.directory import RunDirectory
from app.run.memory import peak_bytes
from app.training.counts import N_SAMPLES, N_TOKENS, TEMPERATURE, count_baseline, measured
from app.training.language_model import LanguageModelModule
from app.training.run_callbacks.curve import TrainingCurve
from app.training.run_callbacks.graphed_steps import GraphedSteps
from app.training.run_callbacks.retention import BestCheckpoint

LEFT_OUT = "left out of summary.json"


class RunSummary(Callback):
    """Writes ``summary.json`` when the last step and its validation are done.

    Two yardsticks stand beside the losses, so that a figure means something on a text nobody has seen: the
    loss of a model that only counts the training split, and the share of generated words that the text
    really contains, the network's beside the counts'. The words are those of continuations of evenly spaced
    places of the validation split; of a word vocabulary, whose every word occurs, nothing is said. Counting goes
    on beside the training, where it has not happened before. A yardstick that cannot be measured is null, with a
    note; the losses are written all the same.

    Args:
        directory: the run's.
        curve: where the last training objective stands.
        best: where the best validation stands.
        graphed: what makes the steps; None for the framework.
        n_samples: texts to generate, with seed 0.
        n_tokens: length of each, after a prompt of half a window.
        temperature: of the samples.
    """

    def __init__(
        self,
        directory: RunDirectory,
        curve: TrainingCurve,
        best: BestCheckpoint,
        graphed: GraphedSteps | None = None,
        n_samples: int = N_SAMPLES,
        n_tokens: int = N_TOKENS,
        temperature: float = TEMPERATURE,
    ):
        self.directory = directory
        self.curve = curve
        self.best = best
        self.graphed = graphed
        self.n_samples = n_samples
        self.n_tokens = n_tokens
        self.temperature = temperature
        self.figures: dict[str, Any] = {}
        self._started = 0.0
        self._first_step = 0
        self._baseline: Future[Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock of this launch."""
        self._started, self._first_step = time.monotonic(), trainer.global_step
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.is_global_zero and data.has_words:
            samples = (self.n_samples, self.n_tokens, self.temperature)
            self._baseline = in_background(lambda: count_baseline(data, *samples))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the yardsticks and writes the file."""
        assert isinstance(pl_module, LanguageModelModule)
        if not trainer.is_global_zero:
            return
        seconds = time.monotonic() - self._started
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        steps = trainer.global_step - self._first_step
        known_words: Any = _has_unknown_words(data) and measured(
            "the share of known words", lambda: self._known_words(pl_module, data), LEFT_OUT
        )
        counts = pl_module.network.parameter_counts()
        self.figures = {
            "step": trainer.global_step,
            "tokens_seen": data.tokens_seen(trainer.global_step),
            "parameters": counts["trainable"] + counts["frozen"],
            **{f"parameters/{kind}": count for kind, count in counts.items()},
            **{key: self.curve.last[key] for key in ("train/loss", "train/bpb") if key in self.curve.last},
            **pl_module.last_validation,
            "best/val_loss": self.best.best_loss if self.best.best_step else None,
            "best/step": self.best.best_step or None,
            **self._baseline_figures(pl_module.last_validation, data),
            "samples/known_word_share": known_words.share if known_words else None,
            "samples/n_words": known_words.n_words if known_words else None,
            "samples/temperature": self.temperature,
            **self._sizes(pl_module, data, trainer.global_step),
            "launch/steps": steps,
            "launch/seconds": seconds,
            "launch/tokens_per_second": steps * data.tokens_per_step / max(seconds, 1e-9),
            "launch/device": str(pl_module.device),
            "launch/threads": torch.get_num_threads(),
            **({} if self.graphed is None else self.graphed.described()),
            "launch/peak_bytes": torch.cuda.max_memory_allocated()
            if pl_module.device.type == "cuda"
            else peak_bytes(),
        }
        self.best.state.check_lock()
        write_json(self.directory.summary, self.figures)

    def _sizes(self, pl_module: LanguageModelModule, data: Any, step: int) -> dict[str, Any]:
        """FLOPs of all steps, where the network counts them, and bytes of what it keeps of a window."""
        network, window = pl_module.network, data.block_size
        per_token = getattr(network, "flops_per_token", None)
        return {
            "flops": None if per_token is None else per_token(window) * data.tokens_seen(step),
            "state_bytes": network.state_size(window),
        }

    def _baseline_figures(self, validation: dict[str, float], data: Any) -> dict[str, Any]:
        baseline = self._baseline
        found: Any = baseline and measured("what counting reaches", baseline.result, LEFT_OUT)
        loss = found and found.losses.get("val")
        in_nats, in_bits = validation.get("val/loss"), validation.get("val/bpb")
        per_nat = in_bits / in_nats if in_nats and in_bits else None
        return {
            "baseline/count_order": found and found.order,
            "baseline/count_loss": loss,
            "baseline/count_bpb": None if per_nat is None or loss is None else loss * per_nat,
            "baseline/count_known_word_share": found.known_word_share
            if found and _has_unknown_words(data)
            else None,
        }

    def _known_words(self, pl_module: LanguageModelModule, data: Any) -> Any:
        texts = pl_module.generate_texts(
            data.validation_prompts(self.n_samples, data.block_size // 2),
            max_new_tokens=self.n_tokens,
            temperature=self.temperature,
            seed=0,
        )
        return data.known_words(texts)


def _has_unknown_words(data: Any) -> bool:
    """Whether a generated word may be one that the text does not have."""
    return data.has_words and not data.tokenizer.knows_words


def in_background(work: Callable[[], Any]) -> "Future[Any]":
    """Does something in a thread that ends with the process."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="yardsticks", daemon=True).start()
    return future
