"""Text of tokens that arrive one at a time."""

from collections.abc import Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are no character, or not yet
KEPT_TOKENS = (
    8  # a character has at most four bytes, so that no more tokens than these decide how the next one reads
)


# A network writes what its text held, also sequences that would command a terminal: each becomes a sign to look at.
_SIGNS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {
    0x7F: 0x2421,
    **{code: ord(REPLACEMENT) for code in range(0x80, 0xA0)},
}


def for_terminal(text: str) -> str:
    """The text with control characters, but for line ends and tabs, as visible signs."""
    return text.translate(_SIGNS)


class Decoder(Protocol):
    """The part of a tokenizer that is needed here."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids."""


class TextStream:
    """Turns tokens into text as they come, as it would read if they were decoded all together.

    A token may be a part of a character only, or be written with a space that depends on the token before it.
    Text is therefore given out once the characters in it are complete, and as the difference that a token makes
    to the text of those before it.

    Args:
        tokenizer: decodes several tokens together.
        before: tokens that come before the first one and are not given out.
    """

    def __init__(self, tokenizer: Decoder, before: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._ids = [int(token) for token in before]
        self._n_given = 0  # characters of their text that have been given out
        self._forget(self._text())

    def add(self, token: int) -> str:
        """Text that has become complete with this token, often empty where tokens are parts of characters."""
        self._ids.append(int(token))
        text = self._text()
        new = text[self._n_given : len(text) - _n_open(text)]
        self._forget(text)
        return new

    def end(self) -> str:
        """What is left of a character that never became complete."""
        return self._text()[self._n_given :]

    def _text(self) -> str:
        return self._tokenizer.decode(self._ids) if self._ids else ""

    def _forget(self, text: str) -> None:
        """Keeps the last tokens; all of ``text`` but an open end has been given out."""
        if len(self._ids) > KEPT_TOKENS:
            self._ids = self._ids[-KEPT_TOKENS:]
            text = self._text()
        self._n_given = len(text) - _n_open(text)


def _n_open(text: str) -> int:
    """Characters at the end of a text that a further token may still change."""
    return int(text.endswith(REPLACEMENT))
