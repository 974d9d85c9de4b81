"""What a trained network must beat, and whether its words are words."""

import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

_WORD = re.compile(r"[A-Za-z]{4,}")
MAX_BIGRAM_VOCABULARY = 4096  # the table of counts has V² cells


class KnownWords(NamedTuple):
    """How many words of a text occur in another.

    Attributes:
        n_words: words of four letters and more.
        n_known: those of them that occur in the reference text.
    """

    n_words: int
    n_known: int

    @property
    def share(self) -> float | None:
        """Known words over words; None when there is no word."""
        return self.n_known / self.n_words if self.n_words else None


def bigram_loss(train: np.ndarray, validation: np.ndarray, vocab_size: int) -> float | None:
    """Cross-entropy of an add-one bigram, in nats per token of ``validation[1:]``.

    ``p(b | a) = (count(a, b) + 1) / (count(a) + V)``, counted on the training split.

    Args:
        train: ``(n,)`` token ids.
        validation: ``(m,)`` token ids, m >= 2.
        vocab_size: V.

    Returns:
        None for vocabularies above 4,096, whose table would not be a small yardstick any more.
    """
    if vocab_size > MAX_BIGRAM_VOCABULARY:
        return None
    counts = np.zeros(vocab_size * vocab_size, dtype=np.int64)
    for start in range(0, len(train) - 1, 1 << 24):
        piece = train[start : start + (1 << 24) + 1].astype(np.int64)
        counts += np.bincount(piece[:-1] * vocab_size + piece[1:], minlength=vocab_size * vocab_size)
    table = counts.reshape(vocab_size, vocab_size) + 1.0
    log_probability = np.log(table) - np.log(table.sum(axis=1, keepdims=True))
    total = 0.0
    for start in range(0, len(validation) - 1, 1 << 24):
        piece = validation[start : start + (1 << 24) + 1].astype(np.int64)
        total -= float(log_probability[piece[:-1], piece[1:]].sum())
    return total / (len(validation) - 1)


def words(pieces: Iterable[str]) -> set[str]:
    """All words of four letters and more in a text given in pieces."""
    found: set[str] = set()
    for piece in pieces:
        found.update(_WORD.findall(piece))
    return found


def known_words(texts: Iterable[str], reference: set[str]) -> KnownWords:
    """Counts the words of several texts; a text's first and last word may be cut off and do not count."""
    n_words = n_known = 0
    for text in texts:
        for match in _WORD.finditer(text):
            if match.start() > 0 and match.end() < len(text):
                n_words += 1
                n_known += match.group() in reference
    return KnownWords(n_words, n_known)
