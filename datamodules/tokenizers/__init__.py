"""Tokenizers: text to token ids and back, each saved as one JSON file with a ``kind``."""

from pathlib import Path
from typing import Any

from app.run.bounded import MAX_TABLE_BYTES, parse_json, read_bytes
from app.run.errors import DataError
from datamodules.tokenizers.base import Tokenizer
from datamodules.tokenizers.bpe import BPETokenizer, GPT2Tokenizer
from datamodules.tokenizers.byte import ByteTokenizer
from datamodules.tokenizers.char import CharTokenizer
from datamodules.tokenizers.symbols import SymbolTokenizer
from datamodules.tokenizers.word import WordTokenizer

__all__ = [
    "BPETokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "GPT2Tokenizer",
    "SymbolTokenizer",
    "Tokenizer",
    "WordTokenizer",
    "from_dict",
    "load",
]

KINDS = ("char", "byte", "word", "bpe", "gpt2", "symbols")


def from_dict(values: dict[str, Any]) -> Tokenizer:
    """Tokenizer of the plain values of its ``to_dict``.

    Raises:
        DataError: an unknown kind, or fields that are missing or of the wrong type.
    """
    kind = values.get("kind")
    if kind == ByteTokenizer.kind:
        return ByteTokenizer()
    if kind in (BPETokenizer.kind, GPT2Tokenizer.kind):
        return (BPETokenizer if kind == BPETokenizer.kind else GPT2Tokenizer).from_dict(values)
    if kind == CharTokenizer.kind:
        alphabet = values.get("alphabet")
        if not isinstance(alphabet, str):
            raise DataError(f"alphabet: must be a string of characters, not {type(alphabet).__name__}.")
        return CharTokenizer(alphabet)
    if kind == WordTokenizer.kind:
        words = values.get("words")
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise DataError("words: must be a list of strings.")
        return WordTokenizer(words)
    if kind == SymbolTokenizer.kind:
        return SymbolTokenizer(values.get("vocab_size"))  # type: ignore[arg-type]
    raise DataError(f"kind: {kind!r} is no tokenizer kind; known: {', '.join(KINDS)}.")


def load(path: str | Path) -> Tokenizer:
    """Reads a ``tokenizer.json`` of any kind.

    Raises:
        DataError: the file is missing, unreadable, larger than any vocabulary, not JSON, or not a tokenizer.
    """
    try:
        values = parse_json(read_bytes(path, MAX_TABLE_BYTES))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
    except ValueError as error:  # also UnicodeDecodeError
        raise DataError(f"{path}: not a tokenizer file ({error}).") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: not a tokenizer file (a JSON object with `kind` is expected).")
    try:
        return from_dict(values)
    except DataError as error:
        raise DataError([f"{path}: {problem}" for problem in error.problems]) from None
