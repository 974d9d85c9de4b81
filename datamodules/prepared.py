"""Data modules over texts that are tokenised once and kept as token files."""

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from app.options import Given, NonNegativeInt, PositiveInt, Probability, Within
from app.run.errors import DataError
from app.run.paths import typed_path
from datamodules.base import PathName, TokenDataModule, fractions_problem
from datamodules.corpus import Corpus, check_lengths
from datamodules.hub import OfflineError
from datamodules.preparation import Preparation, TokenizerKind
from datamodules.split_names import SPLITS
from datamodules.splits import DataSource
from datamodules.token_files import key_of
from datamodules.tokenizers.bpe import MIN_VOCAB_SIZE

#: options that do without the hub
OTHERWISE = "--data CharDataModule --data.source stdlib"


class PreparedDataModule(TokenDataModule):
    """Windows of a text that ``app prepare``, or the first ``fit``, has turned into token files.

    Args:
        tokenizer: ``bpe`` (byte pairs learnt from the training split), ``word`` (what white space separates,
            ``<eos>`` per line, ``<unk>`` for the rest), ``char``, ``byte``, or ``gpt2`` (that model's own).
        tokenizer_path: for ``gpt2``, the folder of its ``vocab.json`` and ``merges.txt``, by default
            ``gpt2`` in ``cache_dir``; otherwise a ``tokenizer.json``, for example of a run, to be used as it is.
        max_vocab_size: largest vocabulary of ``bpe`` (None: 8,192) and ``word`` (None: every word).
        val_fraction: share of a text without a validation split that becomes one.
        test_fraction: share of such a text for the test split.
        cache_dir: folder for everything that is prepared.
        n_processes: that encode; 0 takes one per core, for texts worth it.
        windows: options of :class:`~datamodules.base.TokenDataModule`.
    """

    def __init__(
        self,
        tokenizer: TokenizerKind = "bpe",
        tokenizer_path: PathName | None = None,
        max_vocab_size: PositiveInt | None = None,
        val_fraction: Annotated[float, Within("(0, 1)")] = 0.1,
        test_fraction: Probability = 0.0,
        cache_dir: PathName = "data/prepared",
        n_processes: NonNegativeInt = 0,
        **windows: Any,
    ):
        super().__init__(**windows)
        self.tokenizer_kind: TokenizerKind = tokenizer
        self.tokenizer_path = tokenizer_path
        self.max_vocab_size = max_vocab_size
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.cache_dir = Path(typed_path(cache_dir))
        self.n_processes = n_processes

    @abstractmethod
    def open_source(self) -> DataSource:
        """The data set.

        Raises:
            DataError: it is not there.
        """

    @property
    def kept_in(self) -> Path:
        """The folder of everything that is prepared."""
        return self.cache_dir

    @property
    def remedy_offline(self) -> str:
        """How to do without the network, beside preparing elsewhere."""
        return "use a text of your own with datamodules.TextDataModule"

    @staticmethod
    def conflicts(given: Given) -> Iterator[tuple[str, str]]:
        yield from TokenDataModule.conflicts(given)
        least = MIN_VOCAB_SIZE if given.tokenizer == "bpe" else 3
        if given.max_vocab_size is not None and given.max_vocab_size < least:
            yield "max_vocab_size", f"must be at least {least} with tokenizer: {given.tokenizer}"
        yield from fractions_problem(given)

    @staticmethod
    def without_effect(given: Given) -> Iterator[tuple[str, str]]:
        if given.tokenizer not in ("bpe", "word"):
            yield "max_vocab_size", f"with tokenizer: {given.tokenizer}"
        elif given.tokenizer_path is not None:
            yield "max_vocab_size", "with tokenizer_path"
        if given.tokenizer == "byte":
            yield "tokenizer_path", "with tokenizer: byte"

    def read_corpus(self) -> Corpus:
        """Maps the prepared tokens, after preparing them where that has not happened.

        Raises:
            DataError: the text cannot be used.
        """
        source = self.open_source()
        preparation = Preparation(
            source=source,
            kind=self.tokenizer_kind,
            tokenizer_path=Path(typed_path(self.tokenizer_path)) if self.tokenizer_path else None,
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
                f"a network and copy {self.cache_dir} here, or {self.remedy_offline}. With {OTHERWISE} the same "
                "network reads a text that is here."
            ) from None
        tokenizer, tokens, facts = prepared.tokenizer, prepared.tokens, prepared.facts
        n_tokens = {split: len(tokens[split]) for split in SPLITS}
        own = source.identity.get("splits", ())
        has_test = "test" in facts or "test" in own
        check_lengths(n_tokens, source.label, block_size=self.block_size, has_test=has_test, own=own)
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
        # What is prepared goes by the content of the files: those of this folder may have other names.
        files = prepared.files if source.listing is None else tuple(source.listing.lines())
        train, val, test = (tokens[split] for split in SPLITS)
        return Corpus(tokenizer, train, val, test, fingerprint, summary, files, facts)
