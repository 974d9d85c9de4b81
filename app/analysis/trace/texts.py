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


def parts_of_characters(texts: Sequence[str]) -> list[str]:
    """Which part of a character each token is, in words; empty of a token that is whole characters.

    Args:
        texts: of :func:`token_texts`.
    """
    said = [""] * len(texts)
    for first, text in enumerate(texts):
        n_parts = 1
        while first + n_parts < len(texts) and texts[first + n_parts] == CONTINUED:
            n_parts += 1
        if n_parts == 1 or text == CONTINUED:
            continue
        encoded = text.encode("utf-8", "replace")
        for part in range(n_parts):
            byte = f": byte {encoded[part]:02X}" if len(encoded) == n_parts else ""
            said[first + part] = f"part {part + 1} of {n_parts} of {text}{byte}"
    return said


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
