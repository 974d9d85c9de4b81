"""A text as token arrays, one per split, with what identifies it. Imports neither torch nor lightning."""

import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from app.run.atomic import free_bytes
from app.run.errors import DataError, StorageError
from datamodules.split_names import NAMES, SPLITS
from datamodules.splits import DataSource
from datamodules.text import summarise
from datamodules.token_files import SplitFacts
from datamodules.tokenizers import CharTokenizer, Tokenizer

# Larger token arrays live in a mapped temporary file, so that memory stays bounded whatever the text's size.
MAX_BYTES_IN_MEMORY = 64 << 20


@dataclass(frozen=True)
class Corpus:
    """Tokens of one text.

    Attributes:
        tokenizer: made the tokens.
        train, val, test: ``(n,)`` unsigned ids, consecutive parts of the text.
        fingerprint: plain values that change when the text, the tokenizer or the split does.
        summary: one line for people.
        files: lines that say what was read for which split and what was left out; empty for a single file.
        facts: what was counted in the text of each split when it was encoded; empty where nothing was.
    """

    tokenizer: Tokenizer
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    fingerprint: dict[str, Any]
    summary: str
    files: tuple[str, ...] = ()
    facts: Mapping[str, SplitFacts] = field(default_factory=dict)


def split_points(n_tokens: int, val_fraction: float, test_fraction: float) -> tuple[int, int]:
    """Ends of the train and the validation split; the test split is the rest.

    Fractions count as the decimals they are written as, so that 0.1 of 1000 tokens are 100. Ends are rounded
    down: of 1,115,394 tokens and ``val_fraction`` 0.1 the first 1,003,854 train.
    """
    val, test = Fraction(str(val_fraction)), Fraction(str(test_fraction))
    return int(n_tokens * (1 - val - test)), int(n_tokens * (1 - test))


def read_char_corpus(
    source: DataSource, *, block_size: int, val_fraction: float, test_fraction: float, data_dir: Path
) -> Corpus:
    """Reads a text twice, for its alphabet and for its tokens, and splits it where it does not come in splits.

    Args:
        source: the text, or those of its splits.
        block_size: targets per window; the training split must hold one window.
        val_fraction: share of the tokens for validation, where there is no text for it.
        test_fraction: share of the tokens at the end for the test split, in the same case.
        data_dir: holds the temporary file of a text above :data:`MAX_BYTES_IN_MEMORY`.

    Raises:
        DataError: a text is empty, only white space, too short, not text, that of two splits, or changes while it is
            read.
        StorageError: no room for the temporary file.
    """
    where = source.label
    texts = {split: summarise(text.pieces()) for split, text in source.texts.items()}
    n_all = sum(text.n_characters for text in texts.values())
    is_blank = {split: not text.alphabet.strip() for split, text in texts.items()}
    refuse_blank(where, None, n_all, all(is_blank.values()), block_size + 1)
    for split, text in texts.items():
        refuse_blank(where, split, text.n_characters, is_blank[split], block_size + 1)
    refuse_equal(where, {split: text.sha256 for split, text in texts.items()})
    n_tokens = {split: texts[split].n_characters if split in texts else 0 for split in SPLITS}
    if "val" not in texts:
        cut_off = 0.0 if "test" in texts else test_fraction
        train_end, val_end = split_points(n_tokens["train"], val_fraction, cut_off)
        n_tokens |= {"val": val_end - train_end, "train": train_end}
        if "test" not in texts:
            n_tokens["test"] = texts["train"].n_characters - val_end
    has_test = test_fraction > 0 or "test" in texts
    check_lengths(n_tokens, where, block_size=block_size, has_test=has_test, own=texts)
    tokenizer = CharTokenizer("".join({c for text in texts.values() for c in text.alphabet}))
    pieces = (piece for text in source.texts.values() for piece in text.pieces())
    tokens = _store(_encoded(pieces, tokenizer, where), n_all, tokenizer.dtype, data_dir)
    if len(tokens) != n_all:
        raise _changed(where)
    train, val, test = np.split(tokens, [n_tokens["train"], n_tokens["train"] + n_tokens["val"]])
    is_one = len(texts) == 1
    details = {key: value for key, value in source.identity.items() if key != "splits"}
    fingerprint = {
        "source": source.name,
        **details,
        **{"sha256" if is_one else f"{split}_sha256": text.sha256 for split, text in texts.items()},
        "n_files": len(source.files),
        "n_characters": n_all,
        "tokenizer": tokenizer.hash,
        "train_tokens": len(train),
        "val_tokens": len(val),
        "test_tokens": len(test),
    }
    label = where + "".join(f" ({key.capitalize()} {value})" for key, value in details.items())
    splits = f"{len(train):,} train / {len(val):,} validation" + (
        f" / {len(test):,} test" if len(test) else ""
    )
    summary = f"{label}: {n_all:,} characters, {tokenizer.vocab_size} symbols; {splits} tokens"
    if source.license is not None:
        summary += f"; licence {source.license}"
    files = () if source.listing is None else tuple(source.listing.lines())
    return Corpus(tokenizer, train, val, test, fingerprint, summary, files)


@dataclass(frozen=True)
class _TextInMemory:
    """A text that is no file; see :class:`datamodules.splits.SplitText`."""

    label: str
    text: str

    @property
    def n_bytes(self) -> int:
        return len(self.text.encode())

    def pieces(self) -> Iterator[str]:
        yield self.text


def corpus_of_text(
    text: str, name: str, *, block_size: int, val_fraction: float, test_fraction: float = 0.0
) -> Corpus:
    """The characters of a text that a data module has made or read in a way of its own, split where it ends.

    Args:
        text: all of it.
        name: of the data set, for its fingerprint and for messages.
        block_size: targets per window; the training split must hold one window.
        val_fraction: share of the characters for validation, after the training part.
        test_fraction: share at the end for the test split.

    Raises:
        DataError: the text is empty, only white space, or too short.
    """
    return read_char_corpus(
        DataSource(name, name, {}, {"train": _TextInMemory(name, text)}),
        block_size=block_size,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        data_dir=Path(tempfile.gettempdir()),
    )


def refuse_blank(where: str, split: str | None, n_characters: int, is_blank: bool, n_needed: int) -> None:
    """Raises DataError for a text that is empty or only white space, and for such white space in one of its splits."""
    if split is None and not n_characters:
        raise DataError(f"{where}: the text is empty; {n_needed} training tokens are needed.")
    if is_blank and n_characters:
        text = "the text" if split is None else f"the text of the {NAMES[split]} split"
        raise DataError(f"{where}: {text} is only white space ({n_characters} characters).")


def refuse_equal(where: str, sha256: Mapping[str, str]) -> None:
    """Raises DataError where a split that is held out has the text of the training split, by its hash."""
    for split, digest in sha256.items():
        if split != "train" and digest == sha256.get("train"):
            raise DataError(
                f"{where}: the training and the {NAMES[split]} split hold the same text, so that nothing is held out. "
                "Remove one of them."
            )


def check_lengths(
    n_tokens: Mapping[str, int], where: str, *, block_size: int, has_test: bool, own: Collection[str] = ()
) -> None:
    """Whether every split is long enough.

    Args:
        n_tokens: by split.
        where: the text, for the message.
        block_size: targets per window; the training split must hold one window.
        has_test: whether there should be a test split.
        own: splits that come as texts of their own; the others are cut from the training text.

    Raises:
        DataError: all splits that are too short, with the tokens that they have and need.
    """
    problems = []
    if n_tokens["train"] < block_size + 1:
        problems.append(
            f"{where}: the text is too short to train on: its training split has {n_tokens['train']} tokens, "
            f"block_size {block_size} needs {block_size + 1}. Give more text or a smaller block_size."
        )
    total = sum(n_tokens.values())
    for name, split in (("validation", "val"), ("test", "test")):
        if n_tokens[split] < 2 and (split == "val" or has_test):  # one input and its target
            problems.append(
                f"{where}: the {name} split has {n_tokens[split]} of the {total} tokens, it needs 2. "
                + ("Give it more text." if split in own else f"Give more text or a larger {split}_fraction.")
            )
    if problems:
        raise DataError(problems)


def _encoded(pieces: Iterable[str], tokenizer: CharTokenizer, where: str) -> Iterator[np.ndarray]:
    for piece in pieces:
        try:
            yield tokenizer.encode_compact(piece)
        except DataError:
            raise _changed(where) from None


def _changed(where: str) -> DataError:
    return DataError(f"{where}: the text changed while it was read. Start again when nothing writes to it.")


def _store(arrays: Iterable[np.ndarray], n_tokens: int, dtype: np.dtype, data_dir: Path) -> np.ndarray:
    """Joins ``arrays`` of ``n_tokens`` together, in memory or, when large, in an unnamed mapped file."""
    if n_tokens * dtype.itemsize <= MAX_BYTES_IN_MEMORY:
        return np.concatenate([np.empty(0, dtype), *arrays])
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=data_dir) as file:
            for array in arrays:
                file.write(array.tobytes())
            file.flush()
            # The mapping keeps the unnamed file alive; it vanishes with the process, however that ends.
            return np.memmap(file, dtype=dtype, mode="r").view(np.ndarray)
    except OSError as error:
        free = free_bytes(data_dir)
        room = "" if free is None else f"; {free:,} bytes are free"
        raise StorageError(
            f"{data_dir}: {n_tokens * dtype.itemsize:,} bytes of tokens cannot be kept there "
            f"({error.strerror}{room}). Set data_dir to a folder with more room."
        ) from None
