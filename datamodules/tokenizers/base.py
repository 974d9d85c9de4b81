"""What every tokenizer knows: its hash, its bytes per token, how to decode, and how it is kept."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from app.run.atomic import write_text
from datamodules.text import as_read

Ids = Sequence[int] | np.ndarray


class Losses(NamedTuple):
    """What a text held that its tokens do not.

    Attributes:
        n_unknown: words that stand as another token, because the vocabulary has them not.
        n_spaces: characters of white space, but for what is the same everywhere: one space between words, and at
            most one before the first and after the last of a line.
    """

    n_unknown: int = 0
    n_spaces: int = 0


class Tokenizer(ABC):
    """Text to token ids and back; immutable once made.

    Attributes:
        kind: what ``tokenizer.json`` names it.
        is_lossless: whether ``decode(encode(text)) == text`` for every text that can be encoded.
        knows_words: whether every word that it can decode to stands in the text that it was made from.
        dtype: the smallest unsigned type that holds every id, in which they are kept.
        token_bytes: ``(vocab_size,)`` int64, UTF-8 bytes of the text that each token stands for.
    """

    kind: ClassVar[str]
    is_lossless: ClassVar[bool] = True
    knows_words: ClassVar[bool] = False
    dtype: np.dtype
    token_bytes: np.ndarray

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of tokens."""

    @abstractmethod
    def encode_compact(self, text: str) -> np.ndarray:
        """Token ids ``(n,)`` of type :attr:`dtype`, as files of tokens hold them; see :meth:`encode`."""

    def encode(self, text: str) -> np.ndarray:
        """Token ids ``(n,)`` int64, as networks take them.

        A text may be encoded in parts: where each begins with a space or line end that follows no white
        space, the ids together are those of the whole.

        Raises:
            DataError: characters that the tokenizer does not know, named with their positions.
        """
        return self.encode_compact(text).astype(np.int64)

    def encode_prompt(self, text: str) -> np.ndarray:
        """Token ids ``(n,)`` int64 of what a network is to go on from: with line ends as the texts it has read.

        A text without a token, such as the empty one, stands for :meth:`start`.

        Raises:
            DataError: characters that the tokenizer does not know, named with their positions.
        """
        ids = self.encode(as_read(text))
        return ids if len(ids) else self.start()

    def losses(self, text: str, ids: np.ndarray) -> Losses:
        """What of a text its ids do not hold; nothing where the tokenizer is lossless."""
        return Losses()

    @abstractmethod
    def decode(self, ids: Ids) -> str:
        """Text of token ids in ``[0, vocab_size)``, any array or sequence of integers ``(n,)``."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain values that :func:`datamodules.tokenizers.from_dict` turns back into this tokenizer."""

    @cached_property
    def hash(self) -> str:
        """SHA-256, hex, of the canonical JSON form: equal exactly if encoding and decoding are."""
        return hashlib.sha256(canonical(self.to_dict()).encode("ascii")).hexdigest()

    def start(self) -> np.ndarray:
        """``(n,)`` what an empty prompt stands for: a line break."""
        return self.encode("\n")

    def save(self, path: str | Path) -> None:
        """Writes ``tokenizer.json``, atomically.

        Raises:
            StorageError: it cannot be written.
        """
        write_text(path, canonical(self.to_dict()) + "\n")


class BytesTokenizer(Tokenizer):
    """A tokenizer whose tokens each stand for fixed bytes of UTF-8.

    Args:
        pieces: the bytes of every token, in the order of the ids; at least one.
    """

    def __init__(self, pieces: Sequence[bytes]):
        self._pieces = list(pieces)
        self.dtype = np.min_scalar_type(len(self._pieces) - 1)
        self.token_bytes = np.array([len(piece) for piece in self._pieces], dtype=np.int64)

    @property
    def vocab_size(self) -> int:
        return len(self._pieces)

    def decode(self, ids: Ids) -> str:
        """Text of token ids; bytes that are no UTF-8, as at a cut inside a character, become U+FFFD."""
        pieces = [self._pieces[i] for i in np.asarray(ids, dtype=np.int64).reshape(-1).tolist()]
        return b"".join(pieces).decode("utf-8", "replace")


def canonical(values: dict[str, Any]) -> str:
    """The one JSON text of plain values."""
    return json.dumps(values, ensure_ascii=True, sort_keys=True, separators=(",", ":"), allow_nan=False)
