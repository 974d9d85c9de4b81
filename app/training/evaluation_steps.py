"""Validation and test of a network: what a split comes to."""

import math
from typing import Protocol

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from app.models import LanguageModel, LanguageModelOutput
from app.training.lightning_seams import is_attached
from app.training.metrics import EvaluationSums
from app.training.task_metrics import TaskSums

LN2 = 0.6931471805599453
#: a guess among a thousand million equals is no measure of a text: no vocabulary, and no language, has so many words
LARGEST_PERPLEXITY = 1e9


class MakesPasses(Protocol):
    """What may stand in for the network at each batch of an evaluation."""

    def begin(self) -> None:
        """An evaluation begins."""

    def run(self, idx: Tensor) -> LanguageModelOutput:
        """The network's output for ``(B, T)`` tokens, valid until the next call."""
        ...


class EvaluationSteps(LightningModule):
    """A module that evaluates its network on whole splits, the figure being the same whatever its batches and ranks.

    Attributes:
        last_validation: figures of the newest evaluation, by key.
        graphs: what makes forward passes in place of the network; None for nobody.
    """

    network: LanguageModel

    def __init__(self) -> None:
        super().__init__()
        self.last_validation: dict[str, float] = {}
        self.graphs: MakesPasses | None = None
        self._evaluation: EvaluationSums | None = None
        self._answers: TaskSums | None = None
        self._token_bytes: Tensor | None = None

    def setup(self, stage: str) -> None:
        """Takes the bytes per token from the tokenizer, so that losses can be stated per byte."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is not None:
            tokenizer = datamodule.tokenizer
            token_bytes = [0] * datamodule.vocab_size if tokenizer is None else tokenizer.token_bytes
            self._token_bytes = torch.as_tensor(token_bytes, dtype=torch.float64)

    def on_validation_epoch_start(self) -> None:
        """Begins the sums of the evaluation."""
        if self.graphs is not None:
            self.graphs.begin()
        self._evaluation = EvaluationSums().to(self.device)
        data = getattr(self.trainer, "datamodule", None) if is_attached(self) else None
        slice_names = getattr(data, "slice_names", None)
        self._answers = None if slice_names is None else TaskSums(slice_names).to(self.device)

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        """Adds one batch to the sums; targets of −100 count nothing, so padding leaves no trace."""
        idx, targets, *of_task = batch
        output = self.network(idx) if self.graphs is None else self.graphs.run(idx)
        assert self._evaluation is not None and self._token_bytes is not None
        self._token_bytes = self._token_bytes.to(targets.device)
        self._evaluation.update(output.logits, targets, self._token_bytes)
        if self._answers is not None:
            self._answers.update(output.logits, targets, *of_task)
        self.after_scoring(output, targets)

    def after_scoring(self, output: LanguageModelOutput, targets: Tensor) -> None:
        """Called with each evaluation batch once it is counted; a network that adapts to what it reads does so here.

        Args:
            output: of the network, on this rank's ``(B, T)`` part of the batch.
            targets: ``(B, T)`` int64, −100 where there is padding.
        """

    def on_validation_epoch_end(self) -> None:
        """Reduces the sums over ranks and publishes the figures of the whole split.

        Keys, the same with ``test/``:
            ``val/loss``: nats per token.
            ``val/bpb``: bits per UTF-8 byte of the text. Only where the tokens hold all of the text.
            ``val/token_perplexity``: exp of the loss; comparable only with the same tokens.
            ``val/word_perplexity``: exp of the nats per word, a line end being one: that of the literature on
                word-level texts, whatever the tokenizer. Only where the data counts words and none is unknown.
            ``val/unknown_share``: tokens that stand for a word which the vocabulary has not, over all. Only where the
                tokenizer is not lossless.
            ``val/accuracy``, ``val/accuracy/SLICE``: share of the scored positions where the likeliest symbol is the
                answer, in [0, 1]. Only of synthetic tasks, as the following two.
            ``val/legal_share``, ``val/distance``: where the answer is a matter of chance, the share of positions where
                the likeliest symbol is possible, and the mean total variation distance to the true distribution.
        A perplexity above :data:`LARGEST_PERPLEXITY` means nothing and is left out.
        """
        self._finish_evaluation("val")

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        """The same for the test split."""
        self._finish_evaluation("test")

    def _finish_evaluation(self, stage: str) -> None:
        assert self._evaluation is not None
        nats, tokens, n_bytes = self._evaluation.compute()
        self._evaluation = None
        bytes_scale, words_per_token, unknown_share = self._evaluated_text(stage)
        figures = {
            "loss": nats / tokens,
            "bpb": None if bytes_scale is None else nats / LN2 / (n_bytes * bytes_scale),
            "token_perplexity": perplexity(nats, tokens),
            "tokens": tokens,
            "word_perplexity": None
            if words_per_token is None
            else perplexity(nats, tokens * words_per_token),
            "unknown_share": unknown_share,
        }
        figures |= {} if self._answers is None else self._answers.compute()
        self._answers = None
        self.last_validation = {f"{stage}/{name}": x for name, x in figures.items() if x is not None}
        curve = {name: value for name, value in self.last_validation.items() if not name.endswith("/tokens")}
        # For callbacks; the loggers get the figures below, once and by the step.
        self.log_dict({key: torch.tensor(x, dtype=torch.float64) for key, x in curve.items()}, logger=False)
        for logger in self.trainer.loggers:
            logger.log_metrics(curve, step=self.trainer.global_step)

    def _evaluated_text(self, stage: str) -> tuple[float | None, float | None, float | None]:
        """Bytes of the text per byte of its tokens, words per target, and the share of unknown words, where known."""
        datamodule = getattr(self.trainer, "datamodule", None)
        return (1.0, None, None) if datamodule is None else datamodule.evaluated_text(stage)

    @property
    def bytes_per_token(self) -> float | None:
        """Mean UTF-8 bytes per token of the training text; None where its tokens do not hold all of it."""
        found: float | None = self.trainer.datamodule.bytes_per_token  # type: ignore[attr-defined]
        return found


def perplexity(nats: float, n_units: float) -> float | None:
    """``exp(nats / n_units)``; None above :data:`LARGEST_PERPLEXITY`, and where it is no number."""
    nats_per_unit = nats / n_units
    return math.exp(nats_per_unit) if nats_per_unit <= math.log(LARGEST_PERPLEXITY) else None
