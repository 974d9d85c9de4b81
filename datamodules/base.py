"""The part of a data module that does not depend on where its text comes from."""

import inspect
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from app.run.errors import ConfigurationError
from datamodules import yardsticks
from datamodules.corpus import Corpus
from datamodules.loaders import Batch, Placement, Stopwatch, TrainDataset, evaluation_loader, train_loader
from datamodules.resident import ResidentEvaluationLoader, ResidentTrainLoader, on_device
from datamodules.tokenizers import Tokenizer
from datamodules.tokenizers.word import count_words
from datamodules.windows import TrainWindows, micro_batch_index, shard

#: tokens in which generated words are looked up; those of a longer text would not fit in memory
MAX_REFERENCE_TOKENS = 1 << 24
MAX_BYTES_ON_DEVICE = 1 << 28


class EvaluatedText(NamedTuple):
    """What the tokens of an evaluation stand for.

    Attributes:
        bytes_per_token_byte: bytes of the split's text over the bytes that its tokens stand for; 1 where the
            tokenizer loses nothing.
        words_per_token: words (white space separates them, a line end is one) that end among the targets of
            the split, over its targets; None where words were not counted.
    """

    bytes_per_token_byte: float
    words_per_token: float | None


class TokenDataModule(LightningDataModule):
    """Windows of tokens for training, validation and test; subclasses say where the tokens come from.

    Training is one endless stream, a function of ``seed`` and the optimizer step; there is no state to save.
    Batches are ``(x, y)``, each ``(b, block_size)`` int64, ``y`` being ``x`` one token further. Validation
    and test hold every target once and pad ``y`` with -100. Set ``use_distributed_sampler=False`` in the
    trainer: batches are already divided among the ranks.

    On a GPU a split of up to ``max_bytes_on_device`` lives there and its batches are sliced there; a larger
    one streams from its file through page-locked memory, ahead of the step with ``num_workers`` above 0.
    Either way the batches are the same.

    Args:
        block_size: targets per window.
        batch_size: windows per optimizer step, over all ranks and accumulated micro-batches.
        num_workers: loader processes; they change nothing but the speed.
        seed: of the windows' order.
        repeat_windows: if positive, train on the first so many windows only, over and over.
        stride: targets by which evaluation windows move on, in [1, block_size]; None is ``block_size``. Less
            gives every target more context, at proportionally more cost.
        max_bytes_on_device: largest token file that is kept on a GPU; 0 streams always.

    Attributes:
        prepare_command: what messages tell a person to run where there is a network.
    """

    def __init__(
        self,
        block_size: int,
        batch_size: int,
        num_workers: int,
        seed: int,
        repeat_windows: int,
        stride: int | None = None,
        max_bytes_on_device: int = MAX_BYTES_ON_DEVICE,
    ):
        super().__init__()
        self.block_size = block_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.repeat_windows = repeat_windows
        self.stride = stride
        self.max_bytes_on_device = max_bytes_on_device
        self.prepare_command = "app prepare"
        self._resident: dict[str, Tensor] = {}
        self._stopwatch = Stopwatch()
        self._corpus: Corpus | None = None

    @abstractmethod
    def read_corpus(self) -> Corpus:
        """Reads and tokenises the text.

        Raises:
            DataError: the text cannot be used.
        """

    @classmethod
    def problems(cls, **args: Any) -> list[str]:
        """All range problems of constructor arguments at once, without reading anything.

        Args:
            args: constructor arguments of the right types; missing ones have their defaults.

        Returns:
            One message per problem, beginning with the argument's name; empty if there is none.
        """
        values = {"stride": None, "max_bytes_on_device": 0} | cls.with_defaults(args)
        found = []
        for name, minimum in (
            ("block_size", 2),
            ("batch_size", 1),
            ("num_workers", 0),
            ("seed", 0),
            ("repeat_windows", 0),
            ("max_bytes_on_device", 0),
        ):
            if values[name] < minimum:
                found.append(f"{name}: {values[name]} is too small; it must be at least {minimum}.")
        if values["seed"] >= 1 << 63:
            found.append(f"seed: {values['seed']} is too large; it must be below 2^63.")
        stride = values["stride"]
        if stride is not None and not 1 <= stride <= max(values["block_size"], 1):
            found.append(
                f"stride: {stride} must be at least 1 and at most block_size ({values['block_size']})."
            )
        return found

    @classmethod
    def without_effect(cls, **args: Any) -> list[tuple[str, str]]:
        """Name and reason of every argument that does nothing beside the others."""
        return []

    @classmethod
    def with_defaults(cls, args: dict[str, Any]) -> dict[str, Any]:
        """Constructor arguments with the defaults of those that are not given."""
        parameters = inspect.signature(cls).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
        return defaults | args

    def check_source(self) -> Corpus:
        """Reads, tokenises and splits the text on the first call; later calls return the same.

        Raises:
            DataError: the text cannot be used.
        """
        if self._corpus is None:
            self._corpus = self.read_corpus()
        return self._corpus

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

    @property
    def tokens_per_step(self) -> int:
        """Targets per optimizer step, over all ranks."""
        return self.batch_size * self.block_size

    def describe(self) -> str:
        """One line: source, characters, symbols, tokens per split."""
        return self.check_source().summary

    def prepare_data(self) -> None:
        """Downloads what is missing and checks the text, on one process per node."""
        self.check_source()

    def setup(self, stage: str) -> None:
        """Reads the text on every rank."""
        self.check_source()

    @property
    def bytes_per_token(self) -> float:
        """Mean UTF-8 bytes per token of the training split."""
        corpus = self.check_source()
        if "train" in corpus.facts:
            return corpus.facts["train"].n_bytes / len(corpus.train)
        counts = np.bincount(corpus.train, minlength=corpus.tokenizer.vocab_size)
        return float(counts @ corpus.tokenizer.token_bytes / len(corpus.train))

    def evaluated_text(self, split: Literal["val", "test"]) -> EvaluatedText:
        """How losses per token of a split become losses per byte and per word of its text."""
        corpus = self.check_source()
        facts = corpus.facts.get(split)
        if facts is None:
            return EvaluatedText(1.0, None)
        tokens = corpus.val if split == "val" else corpus.test
        # The first token is no target: a word that ends with it does not count.
        head = tokens[:64]
        before = count_words(corpus.tokenizer.decode(head)) - count_words(corpus.tokenizer.decode(head[1:]))
        return EvaluatedText(
            facts.n_bytes / facts.n_token_bytes, (facts.n_words - before) / (len(tokens) - 1)
        )

    def bigram_loss(self) -> float | None:
        """Validation loss of an add-one bigram of the training split, nats per token; None for large V."""
        corpus = self.check_source()
        return yardsticks.bigram_loss(corpus.train, corpus.val, corpus.tokenizer.vocab_size)

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

    def check_placement(self, world_size: int, accumulation: int) -> None:
        """Whether every rank and micro-batch gets equally many windows.

        Raises:
            ConfigurationError: ``batch_size`` does not divide.
        """
        shard(self.batch_size, world_size, accumulation)

    def training_batch(self, step: int, micro_step: int) -> Batch:
        """The micro-batch ``(x, y)`` of this rank at an optimizer step counted from 0."""
        _, rank, accumulation, _, _ = placement = self._placement()
        index = micro_batch_index(
            step,
            micro_step,
            rank,
            batch_size=self.batch_size,
            world_size=placement.world_size,
            accumulation=accumulation,
        )
        return TrainDataset(self.check_source().train, self.train_windows()).__getitems__(index.tolist())

    def train_windows(self) -> TrainWindows:
        """The sequence of training windows."""
        return TrainWindows(len(self.check_source().train), self.block_size, self.seed, self.repeat_windows)

    def train_dataloader(self) -> Iterable[Batch]:
        """Endless loader that goes on at the trainer's optimizer step; :attr:`seconds_in_loader` counts it."""
        tokens, placement = self.check_source().train, self._placement()
        resident = self._on_device("train", tokens)
        self._stopwatch = Stopwatch()
        if resident is not None:
            windows = self.train_windows()
            return ResidentTrainLoader(resident, windows, self.batch_size, placement, self._stopwatch)
        return train_loader(
            tokens, self.train_windows(), self.batch_size, self.num_workers, placement, self._stopwatch
        )

    @property
    def seconds_in_loader(self) -> float:
        """Seconds for which the host has waited for training batches, since the newest loader was made."""
        return self._stopwatch.seconds

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

    def _on_device(self, split: str, tokens: np.ndarray) -> Tensor | None:
        """The tokens of a split on this rank's GPU; None where they stay on the host."""
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        if device.type != "cuda" or tokens.nbytes > self.max_bytes_on_device:
            return None
        if split not in self._resident:
            self._resident[split] = on_device(tokens, device)
        return self._resident[split]

    def _placement(self) -> Placement:
        """Where this process stands; one rank at step 0 without a trainer."""
        trainer = self.trainer
        if trainer is None:
            return Placement()
        return Placement(
            world_size=trainer.world_size,
            rank=trainer.global_rank,
            accumulation=trainer.accumulate_grad_batches,
            step=trainer.global_step,
            pin_memory=trainer.strategy.root_device.type == "cuda",
        )
