"""Data modules over texts that are tokenised once and kept as token files."""

import inspect
from abc import abstractmethod
from pathlib import Path
from typing import Any

from app.run.errors import ConfigurationError, DataError
from datamodules.base import TokenDataModule
from datamodules.corpus import Corpus, check_lengths
from datamodules.hub import OfflineError
from datamodules.preparation import Preparation, TokenizerKind
from datamodules.splits import SPLITS, DataSource
from datamodules.token_files import key_of
from datamodules.tokenizers import KINDS
from datamodules.tokenizers.bpe import MIN_VOCAB_SIZE


class PreparedDataModule(TokenDataModule):
    """Windows of a text that ``app prepare``, or the first ``fit``, has turned into token files.

    Args:
        tokenizer: ``bpe`` (byte pairs learnt from the training split), ``word`` (what white space separates,
            ``<eos>`` per line, ``<unk>`` for the rest), ``char``, ``byte``, or ``gpt2`` (that model's own).
        tokenizer_path: for ``gpt2``, the folder of its ``vocab.json`` and ``merges.txt``, by default
            ``gpt2`` in ``cache_dir``; otherwise a ``tokenizer.json``, for example of a run, to be used as it is.
        max_vocab_size: largest vocabulary of ``bpe`` (None: 8,192) and ``word`` (None: every word).
        val_fraction: share of a text without a validation split that becomes one, in (0, 1).
        test_fraction: share of such a text for the test split, in [0, 1).
        cache_dir: folder for everything that is prepared.
        n_processes: that encode; 0 takes one per core, for texts worth it.
        base: see :class:`~datamodules.base.TokenDataModule`.

    Raises:
        ConfigurationError: arguments out of range, all at once. Reading the text raises DataError.
    """

    def __init__(
        self,
        *,
        tokenizer: TokenizerKind,
        tokenizer_path: str | None,
        max_vocab_size: int | None,
        val_fraction: float,
        test_fraction: float,
        cache_dir: str,
        n_processes: int,
        **base: Any,
    ):
        found = self.problems(**shared_arguments(locals()) | base)
        if found:
            raise ConfigurationError(found)
        super().__init__(**base)
        self.tokenizer_kind: TokenizerKind = tokenizer
        self.tokenizer_path = tokenizer_path
        self.max_vocab_size = max_vocab_size
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.cache_dir = Path(cache_dir).expanduser()
        self.n_processes = n_processes

    @abstractmethod
    def open_source(self) -> DataSource:
        """The data set.

        Raises:
            DataError: it is not there.
        """

    @property
    def remedy_offline(self) -> str:
        """How to do without the network, beside preparing elsewhere."""
        return "use a text of your own with datamodules.TextDataModule"

    @classmethod
    def problems(cls, **args: Any) -> list[str]:
        """All range problems of constructor arguments at once, without reading anything."""
        found = super().problems(**args)
        values = {"val_fraction": 0.1, "test_fraction": 0.0} | cls.with_defaults(args)
        kind, size = values["tokenizer"], values["max_vocab_size"]
        val, test = values["val_fraction"], values["test_fraction"]
        if kind not in KINDS:
            found.append(f"tokenizer: {kind!r} is none of {', '.join(KINDS)}.")
        least = MIN_VOCAB_SIZE if kind == "bpe" else 3
        if size is not None and size < least:
            found.append(f"max_vocab_size: {size} is too small; tokenizer {kind} needs at least {least}.")
        if values["n_processes"] < 0:
            found.append(f"n_processes: {values['n_processes']} is too small; it must be 0 or more.")
        if not (0 < val < 1 and 0 <= test < 1 and val + test < 1):
            found.append(
                f"val_fraction: {val} with test_fraction {test}: the first must be above 0, the second 0 or "
                "more, and their sum below 1."
            )
        return found

    @classmethod
    def without_effect(cls, **args: Any) -> list[tuple[str, str]]:
        """Name and reason of every argument that does nothing beside the others."""
        values = cls.with_defaults(args)
        kind, found = values["tokenizer"], []
        if kind not in ("bpe", "word"):
            found.append(("max_vocab_size", f"with tokenizer: {kind}"))
        elif values["tokenizer_path"] is not None:
            found.append(("max_vocab_size", "with tokenizer_path"))
        if kind == "byte":
            found.append(("tokenizer_path", "with tokenizer: byte"))
        return found

    def read_corpus(self) -> Corpus:
        """Maps the prepared tokens, after preparing them where that has not happened.

        Raises:
            DataError: the text cannot be used.
        """
        source = self.open_source()
        preparation = Preparation(
            source=source,
            kind=self.tokenizer_kind,
            tokenizer_path=Path(self.tokenizer_path).expanduser() if self.tokenizer_path else None,
            max_vocab_size=self.max_vocab_size,
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            cache_dir=self.cache_dir,
            n_processes=self.n_processes,
            n_needed=self.block_size + 1,
        )
        try:
            prepared = preparation.open()
        except OfflineError as error:
            raise DataError(
                f"{error}, and it is not prepared in {self.cache_dir}. Run `{self.prepare_command}` where there is "
                f"a network and copy {self.cache_dir} here, or {self.remedy_offline}."
            ) from None
        tokenizer, tokens, facts = prepared.tokenizer, prepared.tokens, prepared.facts
        n_tokens = {split: len(tokens[split]) for split in SPLITS}
        check_lengths(n_tokens, source.label, block_size=self.block_size, has_test="test" in facts)
        fingerprint = {
            "source": source.name,
            **{f"{split}_sha256": facts[split].sha256 for split in SPLITS if split in facts},
            "tokenizer": tokenizer.hash,
            # Of the same text too, another version of a library might make others.
            "tokens_sha256": key_of([facts[split].tokens_sha256 for split in SPLITS if split in facts]),
            **{f"{split}_tokens": n_tokens[split] for split in SPLITS},
        }
        counted = " / ".join(
            f"{n_tokens[split]:,} {name}"
            for split, name in (("train", "train"), ("val", "validation"), ("test", "test"))
            if n_tokens[split]
        )
        summary = (
            f"{source.label}: {counted} tokens of {tokenizer.vocab_size:,} ({tokenizer.kind}), "
            f"{facts['train'].n_bytes / n_tokens['train']:.2f} bytes per token; "
            f"licence {prepared.license or 'not stated'}; {prepared.folder}"
        )
        return Corpus(tokenizer, tokens["train"], tokens["val"], tokens["test"], fingerprint, summary, facts)


def shared_arguments(values: dict[str, Any]) -> dict[str, Any]:
    """Of the local variables of a constructor, the arguments that :class:`PreparedDataModule` takes."""
    taken = {
        name
        for owner in (PreparedDataModule, TokenDataModule)
        for name in inspect.signature(owner).parameters
    }
    return {name: value for name, value in values.items() if name in taken}
