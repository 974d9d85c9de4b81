"""A text as token arrays, one per split, with what identifies it. Imports neither torch nor lightning."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from app.run.atomic import free_bytes
from app.run.errors import DataError, StorageError
from datamodules.sources import TextSource
from datamodules.text import TextSummary, summarise
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
        facts: what was counted in the text of each split when it was encoded; empty where nothing was.
    """

    tokenizer: Tokenizer
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    fingerprint: dict[str, Any]
    summary: str
    facts: Mapping[str, SplitFacts] = field(default_factory=dict)


def split_points(n_tokens: int, val_fraction: float, test_fraction: float) -> tuple[int, int]:
    """Ends of the train and the validation split; the test split is the rest.

    Fractions count as the decimals they are written as, so that 0.1 of 1000 tokens are 100. Ends are rounded
    down: of 1,115,394 tokens and ``val_fraction`` 0.1 the first 1,003,854 train.
    """
    val, test = Fraction(str(val_fraction)), Fraction(str(test_fraction))
    return int(n_tokens * (1 - val - test)), int(n_tokens * (1 - test))


def read_char_corpus(
    source: TextSource, *, block_size: int, val_fraction: float, test_fraction: float, data_dir: Path
) -> Corpus:
    """Reads a text twice, for its alphabet and for its tokens, and splits it.

    Args:
        source: the text.
        block_size: targets per window; the training split must hold one window.
        val_fraction: share of the tokens for validation.
        test_fraction: share of the tokens at the end for the test split.
        data_dir: holds the temporary file of a text above :data:`MAX_BYTES_IN_MEMORY`.

    Raises:
        DataError: the text is empty, only white space, too short, not text, or changes while it is read.
        StorageError: no room for the temporary file.
    """
    where = source.label
    text = summarise(source.pieces())
    ends = check_text(
        text, where, block_size=block_size, val_fraction=val_fraction, test_fraction=test_fraction
    )
    tokenizer = CharTokenizer(text.alphabet)
    tokens = _store(_encoded(source.pieces(), tokenizer, where), text.n_characters, tokenizer.dtype, data_dir)
    if len(tokens) != text.n_characters:
        raise _changed(where)
    train, val, test = np.split(tokens, ends)
    fingerprint = {
        "source": source.name,
        **source.details,
        "sha256": text.sha256,
        "n_files": len(source.files),
        "n_characters": text.n_characters,
        "tokenizer": tokenizer.hash,
        "train_tokens": len(train),
        "val_tokens": len(val),
        "test_tokens": len(test),
    }
    label = where + "".join(f" ({key.capitalize()} {value})" for key, value in source.details.items())
    splits = f"{len(train):,} train / {len(val):,} validation" + (
        f" / {len(test):,} test" if len(test) else ""
    )
    summary = f"{label}: {text.n_characters:,} characters, {tokenizer.vocab_size} symbols; {splits} tokens"
    if source.license is not None:
        summary += f"; licence {source.license}"
    return Corpus(tokenizer, train, val, test, fingerprint, summary)


def check_text(
    text: TextSummary, where: str, *, block_size: int, val_fraction: float, test_fraction: float
) -> tuple[int, int]:
    """Ends of the splits of a text that can be trained on.

    Raises:
        DataError: empty, only white space, or too short; all splits that are too short at once.
    """
    if not text.n_characters:
        raise DataError(f"{where}: the text is empty; {block_size + 1} training tokens are needed.")
    if text.alphabet.isspace():
        raise DataError(f"{where}: the text is only white space ({text.n_characters} characters).")
    train_end, val_end = split_points(text.n_characters, val_fraction, test_fraction)
    n_tokens = {"train": train_end, "val": val_end - train_end, "test": text.n_characters - val_end}
    check_lengths(n_tokens, where, block_size=block_size, has_test=test_fraction > 0)
    return train_end, val_end


def check_lengths(n_tokens: Mapping[str, int], where: str, *, block_size: int, has_test: bool) -> None:
    """Whether every split is long enough.

    Args:
        n_tokens: by split.
        where: the text, for the message.
        block_size: targets per window; the training split must hold one window.
        has_test: whether there should be a test split.

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
                f"Give more text or a larger {split}_fraction."
            )
    if problems:
        raise DataError(problems)


def _encoded(pieces: Iterable[str], tokenizer: CharTokenizer, where: str) -> Iterator[np.ndarray]:
    for piece in pieces:
        try:
            yield tokenizer.encode(piece)
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
