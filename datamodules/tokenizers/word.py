"""One token per word, counted as the literature on WikiText and Penn Treebank counts them."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from app.run.errors import DataError
from datamodules.tokenizers.base import BytesTokenizer

UNKNOWN, END_OF_LINE = "<unk>", "<eos>"


def count_words(text: str) -> int:
    """Word tokens of a text: what white space separates, and one ``<eos>`` per line end."""
    return len(text.split()) + text.count("\n")


def choose_words(counts: Mapping[str, int], max_vocab_size: int | None) -> list[str]:
    """The vocabulary of counted words: the most frequent ones, equally frequent ones in their own order.

    Args:
        counts: occurrences of each word in the training split.
        max_vocab_size: at most so many words, ``<unk>`` and ``<eos>`` among them; None keeps all.
    """
    ordinary = sorted(word for word in counts if word not in (UNKNOWN, END_OF_LINE))
    ordinary.sort(key=counts.__getitem__, reverse=True)  # stable, and without a pair for each of millions
    return [UNKNOWN, END_OF_LINE, *ordinary][:max_vocab_size]


class WordTokenizer(BytesTokenizer):
    """Words between white space; every line end is ``<eos>``, every unknown word ``<unk>``.

    A text comes back with one space after each word. ``token_bytes`` counts the word and that space, or the
    one byte of a line end; the bytes of a whole split are counted in its text instead.

    Args:
        words: the vocabulary in the order of its ids, ``<unk>`` first and ``<eos>`` second.

    Raises:
        DataError: not such a list.
    """

    kind: ClassVar[str] = "word"
    is_lossless: ClassVar[bool] = False

    def __init__(self, words: list[str]):
        if words[:2] != [UNKNOWN, END_OF_LINE]:
            raise DataError(f"words: a word vocabulary begins with {UNKNOWN} and {END_OF_LINE}.")
        if len(set(words)) != len(words):
            raise DataError("words: a word vocabulary names a word twice; each counts once.")
        super().__init__(
            [b"\n" if word == END_OF_LINE else word.encode("utf-8", "replace") + b" " for word in words]
        )
        self.words = words
        self._ids = {word: number for number, word in enumerate(words)}

    def encode(self, text: str) -> np.ndarray:
        """Token ids ``(n,)``, one per word and per line end; words outside the vocabulary are ``<unk>``."""
        words = text.replace("\n", f" {END_OF_LINE} ").split()
        find = self._ids.get
        return np.fromiter((find(word, 0) for word in words), dtype=self.dtype, count=len(words))

    def to_dict(self) -> dict[str, Any]:
        """Kind and words."""
        return {"kind": self.kind, "words": self.words}
