"""One token per Unicode character."""

from typing import Any, ClassVar

import numpy as np

from app.run.errors import DataError
from datamodules.text import code_points
from datamodules.tokenizers.base import Ids, Tokenizer

_N_CODE_POINTS = 0x110000
_MAX_REPORTED = 5  # unknown characters named in one message


class CharTokenizer(Tokenizer):
    """One token per Unicode character; ids follow the code-point order of the alphabet.

    Args:
        alphabet: the characters, each once; they are sorted here, so their order does not matter.

    Attributes:
        alphabet: sorted characters; token ``i`` is ``alphabet[i]``.

    Raises:
        DataError: an empty alphabet or a repeated character.
    """

    kind: ClassVar[str] = "char"

    def __init__(self, alphabet: str):
        if not alphabet:
            raise DataError("a character tokenizer needs at least one character, its alphabet is empty.")
        if len(set(alphabet)) != len(alphabet):
            raise DataError(
                "the alphabet of a character tokenizer names a character twice; each counts once."
            )
        self.alphabet = "".join(sorted(alphabet))
        self._points = code_points(self.alphabet).astype(np.uint32)
        self.dtype = np.min_scalar_type(self.vocab_size - 1)
        self._ids = np.zeros(int(self._points[-1]) + 1, dtype=self.dtype)
        self._ids[self._points] = np.arange(self.vocab_size, dtype=self.dtype)
        self._known = np.zeros(_N_CODE_POINTS, dtype=bool)
        self._known[self._points] = True
        # UTF-8 needs one byte more from each of these code points on.
        self.token_bytes = 1 + np.searchsorted([0x80, 0x800, 0x10000], self._points, side="right")

    @property
    def vocab_size(self) -> int:
        return len(self.alphabet)

    def encode_compact(self, text: str) -> np.ndarray:
        """Token ids ``(len(text),)``.

        Raises:
            DataError: characters outside the alphabet, named with their positions.
        """
        points = code_points(text)
        known = self._known[points]
        if not known.all():
            raise DataError(self._unknown_message(text, np.flatnonzero(~known)))
        return self._ids[points]

    def start(self) -> np.ndarray:
        """``(1,)`` what an empty prompt stands for: a line break, or the first symbol where there is none."""
        return self.encode("\n" if "\n" in self.alphabet else self.alphabet[0])

    def decode(self, ids: Ids) -> str:
        """Text of token ids in ``[0, vocab_size)``, any array or sequence of integers ``(n,)``."""
        points = self._points[np.asarray(ids, dtype=np.int64).reshape(-1)]
        return points.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "alphabet": self.alphabet}

    def _unknown_message(self, text: str, positions: np.ndarray) -> str:
        first: dict[str, int] = {}
        for position in positions.tolist():
            first.setdefault(text[position], position)
            if len(first) > _MAX_REPORTED:
                break
        named = [f"{c!r} (U+{ord(c):04X}) at position {at}" for c, at in list(first.items())[:_MAX_REPORTED]]
        more = ", …" if len(first) > _MAX_REPORTED else ""
        return (
            f"the text holds {len(positions)} character(s) that the tokenizer does not know: "
            f"{', '.join(named)}{more}. It knows {self.vocab_size} symbols; remove or replace the others."
        )
