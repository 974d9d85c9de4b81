"""The part of a data module that does not depend on where its text comes from."""

import functools
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from app.options import Given, NonNegativeInt, PositiveInt
from app.run.errors import ConfigurationError
from app.run.paths import TypedPath
from datamodules import shared_text, yardsticks
from datamodules.baseline import (
    CountBaseline,
    Samples,
    baseline_file,
    keep_baseline,
    read_baseline,
    work_out,
)
from datamodules.corpus import Corpus
from datamodules.evaluated import EvaluatedText, evaluated_text, notes_on
from datamodules.loaders import (
    Batch,
    EvaluationDataset,
    Stopwatch,
    TrainDataset,
    evaluation_loader,
    train_loader,
)
from datamodules.resident import ResidentEvaluationLoader, ResidentTrainLoader, on_device
from datamodules.tokenizers import Tokenizer
from datamodules.tuning import held_out
from datamodules.windowed import WindowDataModule
from datamodules.windows import TrainWindows, WindowOrder, micro_batch_index, shard

#: tokens in which generated words are looked up; those of a longer text would not fit in memory
MAX_REFERENCE_TOKENS = 1 << 24
MAX_BYTES_ON_DEVICE = 1 << 28
#: a file or folder, as a person types it
PathName = Annotated[str, TypedPath()]


class TokenDataModule(WindowDataModule):
    """Windows of tokens for training, validation and test; subclasses say where the tokens come from.

    Batches are ``(x, y)``, each ``(b, block_size)`` int64, ``y`` being ``x`` one token further. Validation
    and test hold every target once and pad ``y`` with -100.

    On a GPU a split of up to ``max_bytes_on_device`` lives there and its batches are sliced there; a larger
    one streams from its file through page-locked memory, ahead of the step with ``num_workers`` above 0.
    Either way the batches are the same.

    Args:
        stride: tokens between evaluation windows; by default, and at most, ``block_size``. Less gives every target more
            context, at proportionally more cost.
        window_order: their order; every epoch cuts the text anew and visits its windows in a new one (``reshuffled``),
            all do as the first (``fixed``), or each window begins anywhere, drawn with replacement (``random``).
        max_bytes_on_device: largest token file kept on a GPU; its batches are sliced there. 0 streams always.
        windows: options of :class:`~datamodules.windowed.WindowDataModule`.

    Raises:
        ConfigurationError: arguments out of range, all at once. Reading the text raises DataError.
    """

    def __init__(
        self,
        *,
        stride: PositiveInt | None = None,
        window_order: WindowOrder = "reshuffled",
        max_bytes_on_device: NonNegativeInt = MAX_BYTES_ON_DEVICE,
        **windows: Any,
    ):
        super().__init__(**windows)
        self.stride = stride
        self.window_order = window_order
        self.max_bytes_on_device = max_bytes_on_device
        self._resident: dict[str, Tensor] = {}
        self._text: Corpus | None = None
        self._corpus: Corpus | None = None

    @staticmethod
    def conflicts(given: Given) -> Iterator[tuple[str, str]]:
        if given.stride is not None and given.stride > given.block_size:
            yield "stride", f"must be at most block_size = {given.block_size}"

    @abstractmethod
    def read_corpus(self) -> Corpus:
        """Reads and tokenises the text.

        Raises:
            DataError: the text cannot be used.
        """

    def check_source(self) -> Corpus:
        """Reads, tokenises and splits the text on the first call; later calls return the same.

        Raises:
            DataError: the text cannot be used.
        """
        if self._corpus is None:
            text = self._text = self._text or self.read_corpus()
            if self.tuning_fraction > 0:
                text = held_out(text, self.tuning_fraction, self.block_size, self.is_tuning)
            self._corpus = text
        return self._corpus

    def share_text(self) -> tuple[IO[bytes], list[int]] | None:
        """What :meth:`take_text` of another process needs; None where that one has to read the text itself."""
        self.check_source()
        assert self._text is not None
        return shared_text.share(self._text)

    def take_text(self, descriptor: int, lengths: Sequence[int]) -> None:
        """Takes the text that another process has read, see :mod:`datamodules.shared_text`."""
        self._text = shared_text.take(descriptor, lengths)

    def open_validation(self) -> None:
        super().open_validation()
        self._corpus = None

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the text."""
        return self.check_source().tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of tokens that the tokenizer knows; reads the text if that has not happened."""
        return self.tokenizer.vocab_size

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Plain values that change when the text, the tokenizer or the split does."""
        return dict(self.check_source().fingerprint)

    def describe(self) -> str:
        """Source, characters, symbols and tokens per split; below it, indented, which files were read and which not."""
        corpus = self.check_source()
        return "\n         ".join([corpus.summary, *corpus.files])

    def notes(self, split: Literal["val", "test"] = "val") -> list[str]:
        """What a person should know of the split on which figures are measured."""
        corpus = self.check_source()
        if split == "val" and self.is_tuning:
            return ["val/* are of the tuning split; app validate reads the validation split"]
        return notes_on(split, len(corpus.val if split == "val" else corpus.test), corpus.facts.get(split))

    def prepare_data(self) -> None:
        """Downloads what is missing and checks the text, on one process per node."""
        self.check_source()

    def setup(self, stage: str) -> None:
        """Reads the text on every rank."""
        self.check_source()

    @functools.cached_property
    def bytes_per_token(self) -> float | None:
        """Mean UTF-8 bytes per token of the training split; None where its tokens do not hold all of the text."""
        corpus = self.check_source()
        if facts := corpus.facts.get("train"):
            return None if facts.is_lossy else facts.n_bytes / len(corpus.train)
        counts = np.bincount(corpus.train, minlength=corpus.tokenizer.vocab_size)
        return float(counts @ corpus.tokenizer.token_bytes / len(corpus.train))

    def evaluated_text(self, split: Literal["val", "test"]) -> EvaluatedText:
        """How losses per token of a split become losses per byte and per word of its text."""
        corpus = self.check_source()
        tokens = corpus.val if split == "val" else corpus.test
        return evaluated_text(tokens, corpus.tokenizer, corpus.facts.get(split))

    @property
    def kept_in(self) -> Path | None:
        """Folder for what is worked out once for a text; None keeps nothing."""
        return None

    def count_baseline(
        self,
        n_texts: int,
        prompt_tokens: int,
        n_tokens: int,
        temperature: float,
        compute: bool = True,
        keep: bool = True,
    ) -> CountBaseline | None:
        """What counting alone reaches on this text, worked out once and kept in :attr:`kept_in`.

        Args:
            n_texts: texts to draw from it, see :class:`~datamodules.baseline.Samples`, as for the next three.
            prompt_tokens: length of each prompt.
            n_tokens: drawn after each.
            temperature: to draw at, > 0.
            compute: whether to work it out where that has not happened, which takes up to 10 s; else None.
            keep: whether to keep what was worked out.
        """
        samples = Samples(n_texts, prompt_tokens, n_tokens, temperature)
        text = {**self.fingerprint, "evaluated": "tuning"} if self.is_tuning else self.fingerprint
        file = baseline_file(self.kept_in, text, samples)
        found = read_baseline(file)
        if found is None and compute:
            prompts = self.validation_prompts(samples.n_texts, samples.prompt_tokens)
            found = work_out(self.check_source(), prompts, samples, self.known_words)
            if keep:
                keep_baseline(file, found)
        return found

    def validation_prompts(self, n_prompts: int, n_tokens: int) -> list[np.ndarray]:
        """Equally many tokens each, from evenly spaced places of the validation split.

        Args:
            n_prompts: how many.
            n_tokens: length of each; a shorter split gives shorter ones.
        """
        corpus = self.check_source()
        length = min(n_tokens, len(corpus.val))
        starts = np.linspace(0, len(corpus.val) - length, n_prompts).astype(np.int64)
        return [corpus.val[start : start + length] for start in starts]

    def known_words(self, texts: Iterable[str]) -> yardsticks.KnownWords:
        """How many words of four letters and more of these texts occur in the corpus.

        Of a split of more than :data:`MAX_REFERENCE_TOKENS` so many tokens are looked at.
        """
        corpus = self.check_source()
        pieces = (
            corpus.tokenizer.decode(tokens[start : start + (1 << 20)])
            for tokens in (corpus.train[:MAX_REFERENCE_TOKENS], corpus.val[:MAX_REFERENCE_TOKENS])
            for start in range(0, len(tokens), 1 << 20)
        )
        return yardsticks.known_words(texts, yardsticks.words(pieces))

    @property
    def tokens_per_epoch(self) -> int:
        """Training tokens that one epoch passes over."""
        return self.repeat_windows * self.block_size or len(self.check_source().train)

    def n_validation_batches(self, world_size: int, accumulation: int) -> int:
        """Batches in which each rank reads its share of the validation split."""
        tokens, stride = self.check_source().val, self.stride or self.block_size
        windows = EvaluationDataset(tokens, self.block_size, stride, world_size, rank=0)
        return -(-len(windows) // shard(self.batch_size, world_size, accumulation))

    def training_batch(self, step: int, micro_step: int) -> Batch:
        """The micro-batch ``(x, y)`` of this rank at an optimizer step counted from 0."""
        _, rank, accumulation, _, _ = placement = self._placement()
        index = micro_batch_index(
            self.windows_seen(step),
            micro_step,
            rank,
            batch_size=self.batch_size,
            world_size=placement.world_size,
            accumulation=accumulation,
        )
        return TrainDataset(self.check_source().train, self.train_windows()).__getitems__(index.tolist())

    def train_windows(self) -> TrainWindows:
        """The sequence of training windows."""
        n_tokens = len(self.check_source().train)
        return TrainWindows(n_tokens, self.block_size, self.seed, self.repeat_windows, self.window_order)

    def train_dataloader(self) -> Iterable[Batch]:
        """Endless loader that goes on at the trainer's position; :attr:`seconds_in_loader` counts it."""
        tokens, placement = self.check_source().train, self._placement()
        resident = self._on_device("train", tokens)
        self._stopwatch = Stopwatch()
        if resident is not None:
            windows = self.train_windows()
            return ResidentTrainLoader(resident, windows, self.batch_size, placement, self._stopwatch)
        return train_loader(
            tokens, self.train_windows(), self.batch_size, self.num_workers, placement, self._stopwatch
        )

    def val_dataloader(self) -> Iterable[Batch]:
        """Every target of the validation split once."""
        return self._evaluation_loader("val", self.check_source().val)

    def test_dataloader(self) -> Iterable[Batch]:
        """Every target of the test split once.

        Raises:
            ConfigurationError: there is no test split.
        """
        tokens = self.check_source().test
        if not len(tokens):
            raise ConfigurationError(
                "test_fraction: 0 leaves no test split. Set it, name files for the split, or use `app validate`."
            )
        return self._evaluation_loader("test", tokens)

    def _evaluation_loader(self, split: str, tokens: np.ndarray) -> Iterable[Batch]:
        placement, stride = self._placement(), self.stride or self.block_size
        resident = self._on_device(split, tokens)
        if resident is not None:
            return ResidentEvaluationLoader(resident, self.block_size, self.batch_size, stride, placement)
        return evaluation_loader(
            tokens, self.block_size, self.batch_size, self.num_workers, placement, stride
        )

    def tokens_in_memory(self) -> Mapping[str, Tensor]:
        """The training tokens where this process holds them, ``(n,)`` in a type of their own; none of a mapped file."""
        tokens = self.check_source().train
        resident = self._on_device("train", tokens)
        if resident is None and tokens.flags.writeable:
            resident = torch.from_numpy(tokens)
        return {} if resident is None else {"train": resident}

    def _on_device(self, split: str, tokens: np.ndarray) -> Tensor | None:
        """The tokens of a split on this rank's GPU; None where they stay on the host."""
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        if device.type != "cuda" or tokens.nbytes > self.max_bytes_on_device:
            return None
        if split not in self._resident:
            self._resident[split] = on_device(tokens, device)
        return self._resident[split]


def fractions_problem(given: Given) -> Iterator[tuple[str, str]]:
    """The rule between the shares of a text that are not trained on."""
    if given.val_fraction + given.test_fraction >= 1:
        test = given.test_fraction
        yield "val_fraction", f"and test_fraction = {test} leave nothing to train on; keep their sum below 1"
