"""Whether the words of generated texts are words."""

import re
from collections.abc import Iterable
from typing import NamedTuple

_WORD = re.compile(r"[A-Za-z]{4,}")


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
