"""One token per word, counted as the literature on WikiText and Penn Treebank counts them."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from app.run.errors import DataError
from datamodules.text import code_points
from datamodules.tokenizers.base import BytesTokenizer, Losses

UNKNOWN, END_OF_LINE = "<unk>", "<eos>"
MAX_COUNTED_WORDS = 1 << 20
MAX_WORD_CHARACTERS = 1000
#: by code point, whether it splits words and is neither a space nor a line end; the last one stands for all beyond
_IS_OTHER_SPACE = np.array([chr(code).isspace() and chr(code) not in " \n" for code in range(0x3002)])
_OWN_SYMBOL = re.compile(rf"({UNKNOWN}|{END_OF_LINE})(?!\S)")


def count_words(text: str) -> int:
    """Word tokens of a text: what white space separates, and one ``<eos>`` per line end."""
    return len(text.split()) + text.count("\n")


def count_vocabulary(texts: Iterable[str], max_vocab_size: int | None) -> Counter[str]:
    """Occurrences of the words of a text, in bounded memory whatever it is.

    Of a text of up to :data:`MAX_COUNTED_WORDS` different words all are counted exactly. Of a longer one the rarest
    are forgotten from time to time (Manku and Motwani 2002), which the most frequent ones do not notice. What is
    longer than :data:`MAX_WORD_CHARACTERS` is no word: it stays unknown.

    Args:
        texts: parts of the training split that end between words.
        max_vocab_size: how many are wanted; None for all.

    Raises:
        DataError: all are wanted, and there are more than :data:`MAX_COUNTED_WORDS`.
    """
    counts: Counter[str] = Counter()
    n_kept = max(MAX_COUNTED_WORDS, max_vocab_size or 0)
    for text in texts:
        words = text.split()
        if max(map(len, words), default=0) > MAX_WORD_CHARACTERS:
            words = [word for word in words if len(word) <= MAX_WORD_CHARACTERS]
        counts.update(words)
        if max_vocab_size is None and len(counts) > n_kept:
            raise DataError(
                f"max_vocab_size: there are more than {n_kept:,} different words; set it, to 100000 say."
            )
        if len(counts) > 2 * n_kept:
            least = sorted(counts.values(), reverse=True)[n_kept]
            counts = Counter({word: n for word, n in counts.items() if n > least})
    return counts


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
    knows_words: ClassVar[bool] = True

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

    def encode_compact(self, text: str) -> np.ndarray:
        """Token ids ``(n,)``, one per word and per line end; words outside the vocabulary are ``<unk>``."""
        words = text.replace("\n", f" {END_OF_LINE} ").split()
        find = self._ids.get
        return np.fromiter((find(word, 0) for word in words), dtype=self.dtype, count=len(words))

    def losses(self, text: str, ids: np.ndarray) -> Losses:
        """Words that became ``<unk>`` without being one in the text, and white space between words.

        A word that reads ``<eos>`` is lost as well: it cannot be told from a line end.
        """
        n_unknown = int(np.count_nonzero(ids == self._ids[UNKNOWN]))
        for symbol in _OWN_SYMBOL.finditer(text):  # looking back in the pattern would cost ten times as much
            if symbol.start() == 0 or text[symbol.start() - 1].isspace():
                n_unknown += -1 if symbol[1] == UNKNOWN else 1
        points = code_points(text)
        is_space = points == ord(" ")
        n_spaces = int(np.count_nonzero(is_space[1:] & is_space[:-1]))
        n_spaces += int(np.count_nonzero(_IS_OTHER_SPACE.take(points, mode="clip")))
        return Losses(n_unknown, n_spaces)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "words": self.words}
