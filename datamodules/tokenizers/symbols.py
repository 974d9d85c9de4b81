"""Symbols without a spelling of their own, written as numbers."""

import re
from typing import Any, ClassVar

import numpy as np

from app.run.errors import DataError
from datamodules.tokenizers.base import Ids, Tokenizer

MAX_SYMBOLS = 1 << 24


class SymbolTokenizer(Tokenizer):
    """The numbers of ``vocab_size`` symbols, separated by spaces: ``3 0 15``.

    Args:
        vocab_size: number of symbols, in [1, 2^24].

    Raises:
        DataError: out of range.
    """

    kind: ClassVar[str] = "symbols"
    is_lossless: ClassVar[bool] = False  # of the spaces between the numbers

    def __init__(self, vocab_size: int):
        if type(vocab_size) is not int or not 1 <= vocab_size <= MAX_SYMBOLS:
            raise DataError(
                f"vocab_size: must be a whole number in [1, {MAX_SYMBOLS}], not {vocab_size!r:.40}."
            )
        self._vocab_size = vocab_size
        self.dtype = np.min_scalar_type(vocab_size - 1)
        self.token_bytes = np.array([len(str(symbol)) + 1 for symbol in range(vocab_size)], dtype=np.int64)

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    def encode_compact(self, text: str) -> np.ndarray:
        """Symbols ``(n,)`` of a text of numbers.

        Raises:
            DataError: a word that is no number of a symbol.
        """
        words = text.split()
        for word in words:
            if not re.fullmatch(r"[0-9]{1,9}", word) or int(word) >= self._vocab_size:
                raise DataError(
                    f"{word[:40]!r} is no symbol; write numbers from 0 to {self._vocab_size - 1}, separated by spaces."
                )
        return np.array([int(word) for word in words], dtype=self.dtype)

    def decode(self, ids: Ids) -> str:
        """The numbers, each with a space behind it."""
        return "".join(f"{symbol} " for symbol in np.asarray(ids, dtype=np.int64).reshape(-1).tolist())

    def start(self) -> np.ndarray:
        """The first symbol: there is no line break."""
        return np.zeros(1, dtype=np.int64)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "vocab_size": self._vocab_size}
