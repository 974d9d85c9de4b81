"""One token per byte of UTF-8."""

from typing import Any, ClassVar

import numpy as np

from app.run.errors import DataError
from datamodules.tokenizers.base import BytesTokenizer


class ByteTokenizer(BytesTokenizer):
    """The 256 bytes; every text can be encoded, and every tokenizer of this kind is the same."""

    kind: ClassVar[str] = "byte"

    def __init__(self) -> None:
        super().__init__([bytes([value]) for value in range(256)])

    def encode_compact(self, text: str) -> np.ndarray:
        """Token ids ``(n,)`` uint8, the UTF-8 bytes of the text.

        Bytes of a command line that are no UTF-8, which Python hands over as lone surrogates, stay themselves.

        Raises:
            DataError: any other lone surrogate.
        """
        return np.frombuffer(utf8(text), dtype=np.uint8)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind}


def utf8(text: str, errors: str = "surrogateescape") -> bytes:
    """The UTF-8 bytes of a text.

    Raises:
        DataError: a lone surrogate that stands for nothing; its position is named.
    """
    try:
        return text.encode("utf-8", errors)
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text holds U+{ord(text[error.start]):04X} at position {error.start}, half a character that "
            "UTF-8 cannot hold. Remove it."
        ) from None
