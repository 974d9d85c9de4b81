"""From a data set to prepared token files, once."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from app.run.atomic import make_directory
from app.run.errors import DataError
from datamodules import token_files, tokenizers
from datamodules.corpus import refuse_blank, refuse_equal, split_points
from datamodules.encoding import encoded, segments
from datamodules.file_hashes import FileHashes
from datamodules.lock import exclusive
from datamodules.progress import Progress
from datamodules.splits import DataSource
from datamodules.text import summarise
from datamodules.token_files import PreparedText, TokenWriter
from datamodules.tokenizers import ByteTokenizer, CharTokenizer, GPT2Tokenizer, Tokenizer, WordTokenizer
from datamodules.tokenizers.bpe import DEFAULT_VOCAB_SIZE, train_bpe
from datamodules.tokenizers.word import choose_words, count_vocabulary

TokenizerKind = Literal["bpe", "word", "char", "byte", "gpt2"]
#: byte pairs of a longer text are learnt from parts of it, evenly spread, whose words fit in memory
MAX_BPE_CHARACTERS = 128 << 20
#: a text below this size is encoded before other processes would have started
MIN_BYTES_FOR_PROCESSES = 16 << 20


@dataclass(frozen=True)
class Preparation:
    """What is to be prepared.

    Attributes:
        source: the data set.
        kind: of the tokenizer.
        tokenizer_path: for ``gpt2`` the folder of its files; otherwise a ``tokenizer.json`` of this kind to be
            used as it is; None makes the tokenizer from the training split.
        max_vocab_size: largest vocabulary of ``bpe`` (None: 8,192) and ``word`` (None: every word).
        val_fraction: share of the text for validation, where the data set has no validation split.
        test_fraction: share for the test split, in the same case, unless it has one.
        cache_dir: folder of everything that is prepared.
        n_processes: that encode; 0 takes one per core.
        n_needed: training tokens that are needed, for messages.
    """

    source: DataSource
    kind: TokenizerKind
    tokenizer_path: Path | None
    max_vocab_size: int | None
    val_fraction: float
    test_fraction: float
    cache_dir: Path
    n_processes: int
    n_needed: int = 2

    def open(self) -> PreparedText:
        """The prepared text, prepared now if it is not there.

        Several processes prepare once: the first holds a lock, the others wait and find the files.

        Raises:
            DataError: the text cannot be used.
            OfflineError: it is not here and cannot be fetched.
            StorageError: ``cache_dir`` cannot be written.
        """
        found = self._find()
        if found is not None:
            return found
        progress = Progress(f"prepare  {self.source.label}")
        try:
            make_directory(self.cache_dir)
            lock = self.cache_dir / f".{self._request[:16]}.lock"
            with exclusive(lock, lambda: self._tell_of_waiting(progress)):
                return self._find() or self._prepare(progress)
        except OSError as error:
            raise token_files.storage_error(error, self.cache_dir) from None

    # -- finding ----------------------------------------------------------------------------------------

    @cached_property
    def _hashes(self) -> FileHashes:
        return FileHashes(self.cache_dir / "files.json")

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """Everything that decides the text of each split."""
        has_own_splits = "val" in self.source.identity.get("splits", {})
        fractions = None if has_own_splits else [self.val_fraction, self.test_fraction]
        return {
            "source": dict(self.source.identity),
            "files": self._hashes.of(self.source.files),
            "fractions": fractions,
        }

    @cached_property
    def _request(self) -> str:
        """Decides, together with the files of ``tokenizer_path``, the tokenizer."""
        return token_files.key_of([token_files.FORMAT, self._identity, self.kind, self.max_vocab_size])

    @property
    def _tokenizer_file(self) -> Path:
        return self.cache_dir / "tokenizers" / f"{self._request[:16]}.json"

    def _known_tokenizer(self) -> Tokenizer | None:
        """The tokenizer, if it needs no training or has had it."""
        if self.kind == "gpt2":
            return GPT2Tokenizer.from_files(self.tokenizer_path or self.cache_dir / "gpt2")
        if self.tokenizer_path is not None:
            given = tokenizers.load(self.tokenizer_path)
            if given.kind != self.kind:
                raise DataError(
                    f"tokenizer_path: {self.tokenizer_path} holds a tokenizer of kind {given.kind}, and "
                    f"tokenizer is {self.kind}. Set tokenizer: {given.kind}."
                )
            return given
        if self.kind == "byte":
            return ByteTokenizer()
        try:
            learnt = tokenizers.load(self._tokenizer_file)
        except DataError:  # not there, or damaged: it is learnt again
            return None
        return learnt if learnt.kind == self.kind else None

    def _folder(self, tokenizer: Tokenizer) -> Path:
        key = token_files.key_of([token_files.FORMAT, self._identity, tokenizer.hash])
        return self.cache_dir / f"{self.source.name}-{self.kind}-{key[:16]}"

    def _find(self) -> PreparedText | None:
        tokenizer = self._known_tokenizer()
        return None if tokenizer is None else token_files.load(self._folder(tokenizer), self._hashes)

    # -- preparing --------------------------------------------------------------------------------------

    def _prepare(self, progress: Progress) -> PreparedText:
        if self._hashes.changed:
            names = ", ".join(str(file) for file in self._hashes.changed[:3])
            progress.note(f"{names} changed since it was prepared; preparing it again")
        tokenizer = self._known_tokenizer()
        if tokenizer is None:
            tokenizer = self._make_tokenizer(progress)
            self._check_unchanged()
            make_directory(self._tokenizer_file.parent)
            tokenizer.save(self._tokenizer_file)
        folder = self._folder(tokenizer)
        # Other requests may lead to the same tokenizer and so to the same folder.
        with exclusive(self.cache_dir / f".{folder.name}.lock", lambda: self._tell_of_waiting(progress)):
            found = token_files.load(folder, self._hashes)
            return found or self._write(folder, tokenizer, progress)

    def _write(self, folder: Path, tokenizer: Tokenizer, progress: Progress) -> PreparedText:
        with token_files.new_folder(folder) as staging:
            writer = TokenWriter(staging, tokenizer)
            self._write_tokens(writer, tokenizer, progress)
            self._check_unchanged()
            listing = self.source.find_listing()
            writer.finish(
                {
                    "source": self.source.label,
                    "identity": self._identity,
                    "tokenizer_kind": self.kind,
                    "license": self.source.find_license(),
                    "files": [] if listing is None else listing.lines(),
                }
            )
        prepared = token_files.load(folder, self._hashes)
        assert prepared is not None, f"{folder} was just written"
        return prepared

    def _check_unchanged(self) -> None:
        """What is kept under the hashes of the files must have been read from files with these hashes."""
        if not self._hashes.are_as_hashed(self.source.files):
            raise DataError(
                f"{self.source.label}: the text changed while it was read. Start again when nothing writes to it."
            )

    @staticmethod
    def _tell_of_waiting(progress: Progress) -> None:
        progress.note("another process prepares it; waiting")

    def _make_tokenizer(self, progress: Progress) -> Tokenizer:
        if self.kind == "char":
            pieces = (piece for _, piece in self._texts())
            text = summarise(progress.stage("alphabet", pieces, self._n_bytes))
            refuse_blank(self.source.label, None, text.n_characters, not text.alphabet.strip(), self.n_needed)
            return CharTokenizer(text.alphabet)
        train = (piece for split, piece in self._texts() if split == "train")
        if self.kind == "word":
            parts = segments(progress.stage("words", train, self._n_bytes))
            counts = count_vocabulary(parts, self.max_vocab_size)
            return WordTokenizer(choose_words(counts, self.max_vocab_size))
        spread = self._spread(segments(progress.stage("byte pairs", train, self._n_bytes)))
        return train_bpe(spread, self.max_vocab_size or DEFAULT_VOCAB_SIZE)

    def _spread(self, parts: Iterable[str]) -> Iterator[str]:
        """Evenly spread parts with at most :data:`MAX_BPE_CHARACTERS` together, as far as can be told ahead."""
        share, owed = min(1.0, MAX_BPE_CHARACTERS / max(self._n_bytes, 1)), 0.0
        for part in parts:
            owed += share
            if owed >= 1.0:
                owed -= 1.0
                yield part

    def _write_tokens(self, writer: TokenWriter, tokenizer: Tokenizer, progress: Progress) -> None:
        n_processes = self.n_processes or available_cores()
        if self._n_bytes < MIN_BYTES_FOR_PROCESSES:
            n_processes = 1
        shown = _tagged_stage(progress, self._texts(), self._n_bytes)
        where, blank = self.source.label, {}
        for split, group in groupby(shown, key=lambda tagged: tagged[0]):
            with writer.split(split) as tokens:
                pieces: Iterator[str] = (piece for _, piece in group)
                if not tokenizer.is_lossless:
                    pieces = _ended(pieces)  # the last line counts as a line, with or without its end
                texts = _watched(segments(pieces), tokens.text)
                for part in encoded(texts, tokenizer, n_processes, where):
                    tokens.ids(part)
            blank[split] = tokens.is_blank
        n_characters = {split: facts.n_characters for split, facts in writer.facts.items()}
        refuse_blank(where, None, sum(n_characters.values()), all(blank.values()), self.n_needed)
        files = self.source.identity.get("splits", {})
        for split in files if len(files) > 1 else ():
            refuse_blank(where, split, n_characters.get(split, 0), blank.get(split, True), self.n_needed)
        if "val" in self.source.texts:
            refuse_equal(where, {split: facts.sha256 for split, facts in writer.facts.items()})

    # -- the text ---------------------------------------------------------------------------------------

    @cached_property
    def _n_bytes(self) -> int:
        return sum(self.source.texts[split].n_bytes for split in self.source.texts)

    @cached_property
    def _ends(self) -> tuple[int, int, int]:
        """Characters at which the training, the validation and the test part of the training text end."""
        n_characters = sum(map(len, self.source.texts["train"].pieces()))
        test_fraction = 0.0 if "test" in self.source.texts else self.test_fraction
        return (*split_points(n_characters, self.val_fraction, test_fraction), n_characters)

    def _texts(self) -> Iterator[tuple[str, str]]:
        """Split and text of every piece, the splits one after the other."""
        texts = self.source.texts
        if "val" in texts:
            yield from ((split, piece) for split in texts for piece in texts[split].pieces())
            return
        yield from cut(texts["train"].pieces(), self._ends)
        if "test" in texts:
            yield from (("test", piece) for piece in texts["test"].pieces())


def cut(pieces: Iterable[str], ends: tuple[int, int, int]) -> Iterator[tuple[str, str]]:
    """Divides one text: each part goes on to the end of the line in which its end lies.

    Args:
        pieces: of the text.
        ends: characters at which the training, the validation and the test part end.
    """
    splits = iter(zip(("train", "val", "test"), ends, strict=True))
    split, end = next(splits)
    position = 0
    for piece in pieces:
        while split != "test" and position + len(piece) > end:
            at = max(end - position, 0)
            # A line that is longer than the piece is cut where the part ends.
            head = piece[: (piece.find("\n", at - 1) + 1 or at) if at else 0]
            if head:
                yield split, head
            position += len(head)
            piece = piece[len(head) :]
            split, end = next(splits)
        if piece:
            yield split, piece
        position += len(piece)


def available_cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _tagged_stage(
    progress: Progress, tagged: Iterable[tuple[str, str]], n_bytes: int
) -> Iterator[tuple[str, str]]:
    """Shows tagged pieces as they go by."""
    last = ""

    def untagged() -> Iterator[str]:
        nonlocal last
        for split, piece in tagged:
            last = split
            yield piece

    for piece in progress.stage("tokens", untagged(), n_bytes):
        yield last, piece


def _watched(texts: Iterable[str], look: Any) -> Iterator[str]:
    for text in texts:
        look(text)
        yield text


def _ended(pieces: Iterable[str]) -> Iterator[str]:
    last = ""
    for piece in pieces:
        yield piece
        last = piece or last
    if last and not last.endswith("\n"):
        yield "\n"
