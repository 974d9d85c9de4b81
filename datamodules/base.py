"""The part of a data module that does not depend on where its text comes from."""

import inspect
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from app.run.errors import ConfigurationError
from datamodules import yardsticks
from datamodules.corpus import Corpus
from datamodules.loaders import Batch, Placement, TrainDataset, evaluation_loader, train_loader
from datamodules.tokenizers import Tokenizer
from datamodules.windows import TrainWindows, micro_batch_index, shard


class TokenDataModule(LightningDataModule):
    """Windows of tokens for training, validation and test; subclasses say where the tokens come from.

    Training is one endless stream, a function of ``seed`` and the optimizer step; there is no state to save.
    Batches are ``(x, y)``, each ``(b, block_size)`` int64, ``y`` being ``x`` one token further. Validation
    and test hold every target once and pad ``y`` with -100. Set ``use_distributed_sampler=False`` in the
    trainer: batches are already divided among the ranks.

    Args:
        block_size: targets per window.
        batch_size: windows per optimizer step, over all ranks and accumulated micro-batches.
        num_workers: loader processes; they change nothing but the speed.
        seed: of the windows' order.
        repeat_windows: if positive, train on the first so many windows only, over and over.
    """

    def __init__(self, block_size: int, batch_size: int, num_workers: int, seed: int, repeat_windows: int):
        super().__init__()
        self.block_size = block_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.repeat_windows = repeat_windows
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
        values = cls.with_defaults(args)
        found = []
        for name, minimum in (
            ("block_size", 2),
            ("batch_size", 1),
            ("num_workers", 0),
            ("seed", 0),
            ("repeat_windows", 0),
        ):
            if values[name] < minimum:
                found.append(f"{name}: {values[name]} is too small; it must be at least {minimum}.")
        if values["seed"] >= 1 << 63:
            found.append(f"seed: {values['seed']} is too large; it must be below 2^63.")
        return found

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
        counts = np.bincount(corpus.train, minlength=corpus.tokenizer.vocab_size)
        return float(counts @ corpus.tokenizer.token_bytes / len(corpus.train))

    def bigram_loss(self) -> float | None:
        """Validation loss of an add-one bigram of the training split, nats per token; None for large V."""
        corpus = self.check_source()
        return yardsticks.bigram_loss(corpus.train, corpus.val, corpus.tokenizer.vocab_size)

    def validation_prompts(self, n_prompts: int, n_tokens: int) -> list[str]:
        """Texts of equally many tokens from evenly spaced places of the validation split.

        Args:
            n_prompts: how many.
            n_tokens: length of each; a shorter split gives shorter ones.
        """
        corpus = self.check_source()
        length = min(n_tokens, len(corpus.val))
        starts = np.linspace(0, len(corpus.val) - length, n_prompts).astype(np.int64)
        return [corpus.tokenizer.decode(corpus.val[start : start + length]) for start in starts]

    def known_words(self, texts: Iterable[str]) -> yardsticks.KnownWords:
        """How many words of four letters and more of these texts occur in the corpus."""
        corpus = self.check_source()
        pieces = (
            corpus.tokenizer.decode(tokens[start : start + (1 << 20)])
            for tokens in (corpus.train, corpus.val)
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

    def train_dataloader(self) -> DataLoader[Batch]:
        """Endless loader that goes on at the trainer's optimizer step."""
        return train_loader(
            self.check_source().train,
            self.train_windows(),
            self.batch_size,
            self.num_workers,
            self._placement(),
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        """Every target of the validation split once."""
        return self._evaluation_loader(self.check_source().val)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Every target of the test split once.

        Raises:
            ConfigurationError: there is no test split.
        """
        tokens = self.check_source().test
        if not len(tokens):
            raise ConfigurationError("test_fraction: 0 leaves no test split. Set it, or use `app validate`.")
        return self._evaluation_loader(tokens)

    def _evaluation_loader(self, tokens: np.ndarray) -> DataLoader[Batch]:
        return evaluation_loader(
            tokens, self.block_size, self.batch_size, self.num_workers, self._placement()
        )

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
