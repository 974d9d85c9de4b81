"""What each token of a text stands for, as it is shown."""

import unicodedata
from collections.abc import Callable, Sequence

from app.analysis.html import sign

#: what is shown in place of a character that would not be seen
SIGNS = {" ": "·", "\n": "⏎", "\t": "→", "\r": "␍", "\u00a0": "⍽"}
#: what a decoder makes of a part of a character
PART = "\ufffd"
#: the rest of a character whose first token shows all of it
CONTINUED = "⋯"
MOST_PARTS = 8  # tokens that a character is put together from


def token_texts(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """The text of each token.

    A character that several tokens share, as those of bytes do, stands at the first of them; the others are
    :data:`CONTINUED`.

    Args:
        ids: tokens.
        decode: text of several tokens.
    """
    texts = [decode([number]) for number in ids]
    position = 0
    while position < len(texts):
        n_tokens = 1
        if PART in texts[position]:
            whole = _whole(ids[position : position + MOST_PARTS], decode)
            if whole is not None:
                text, n_tokens = whole
                texts[position : position + n_tokens] = [text, *[CONTINUED] * (n_tokens - 1)]
        position += n_tokens
    return texts


def visible(text: str) -> str:
    """A token's text with signs for what is not seen: white space, control and format characters."""
    return "".join(_sign(character) for character in text) or "∅"


def _whole(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> tuple[str, int] | None:
    """The shortest beginning that is whole characters, and its length in tokens."""
    for n_tokens in range(2, len(ids) + 1):
        text = decode(ids[:n_tokens])
        if PART not in text:
            return text, n_tokens
    return None


def _sign(character: str) -> str:
    if character in SIGNS:
        return SIGNS[character]
    if unicodedata.category(character)[0] in "CZ":
        return sign(character)
    if unicodedata.combining(character):
        return f"◌{character}"
    return character
