"""Reading text files of any size piece by piece, with one clear error for everything that is not text.

Rules for what counts as the text of a file:

- It is UTF-8; a byte-order mark at the start is dropped.
- ``\\r\\n`` and a lone ``\\r`` become ``\\n``, so that a file saved on another system gives the same tokens
  and a prompt typed in a terminal meets the line ends it was trained on. Sizes in bytes (bits per byte)
  count the text after this step, which is the text as trained.
- NUL characters are refused: they are a sign of UTF-16 or of binary data.

What a person types goes through :func:`as_read`, so that it is given the same line ends.
"""

import codecs
import hashlib
import io
import os
import shlex
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.run.errors import DataError

CHUNK_BYTES = 4 << 20  # a chunk costs about ten times this while it is decoded and looked up
_N_CODE_POINTS = 0x110000
_UTF16_SAMPLE_BYTES = 4096
#: first bytes of files that are no text, what they are, and what unpacks them where that makes a text
_OTHER_FORMATS: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "compressed (gzip)", "gunzip -k"),
    (b"BZh91AY&SY", "compressed (bzip2)", "bunzip2 -k"),
    (b"\xfd7zXZ\0", "compressed (xz)", "unxz -k"),
    (b"\x28\xb5\x2f\xfd", "compressed (Zstandard)", "unzstd"),
    (b"\x04\x22\x4d\x18", "compressed (LZ4)", "unlz4"),
    (b"PK\x03\x04", "compressed (zip)", "unzip"),
    (b"7z\xbc\xaf\x27\x1c", "compressed (7-Zip)", "7z x"),
    (b"Rar!\x1a\x07", "compressed (RAR)", "unrar x"),
    (b"%PDF-", "a PDF document", "pdftotext"),
    (b"PAR1", "a parquet file, which TextDataModule reads under the ending .parquet", ""),
    (b"\x89PNG\r\n", "a picture", ""),
    (b"\xff\xd8\xff", "a picture", ""),
)
_REMEDY = "Give a UTF-8 text file (`iconv -f ENCODING -t UTF-8` converts other encodings)."


def as_read(text: str) -> str:
    """A text with the line ends that it would have if it had been read from a file, and without a byte-order mark."""
    text = text.removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def code_points(text: str) -> np.ndarray:
    """Unicode code points of a string, ``(len(text),)``, uint8 for ASCII and uint32 otherwise."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    # A prompt from the command line may hold lone surrogates; they are looked up like any character.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def check_regular_file(path: Path) -> None:
    """Raises DataError unless ``path`` is a regular file or a link to one; never opens it, so never hangs."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise DataError(
                f"{path}: a dangling link; its target {os.readlink(path)} does not exist. "
                "Restore the target or give the file itself."
            ) from None
        place = "" if path.is_absolute() else f" ({path.absolute()})"
        raise DataError(f"{path}: no such file or folder{place}.") from None
    except (OSError, ValueError) as error:  # the latter of a name with a NUL character
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', error)}).") from None
    if not stat.S_ISREG(mode):
        kinds = {
            stat.S_IFIFO: "a named pipe",
            stat.S_IFCHR: "a device",
            stat.S_IFBLK: "a device",
            stat.S_IFSOCK: "a socket",
            stat.S_IFDIR: "a folder",
        }
        kind = kinds.get(stat.S_IFMT(mode), "not a file")
        raise DataError(f"{path}: {kind}; the text is read twice and must be a regular file.")


def read_text(path: Path) -> Iterator[str]:
    """Yields the text of one UTF-8 file in pieces of at most :data:`CHUNK_BYTES` characters.

    Raises:
        DataError: missing, unreadable, not a regular file, compressed or of another format, UTF-16, a NUL byte or
            invalid UTF-8; with the file and the byte offset.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    end = 0
    for offset, chunk in _read_bytes(path):
        end = offset + len(chunk)
        if offset == 0:
            _refuse_other_format(path, chunk)
            _refuse_utf16(path, chunk)
        start = offset
        if offset == 0 and chunk.startswith(codecs.BOM_UTF8):
            start = len(codecs.BOM_UTF8)
            chunk = chunk[start:]
        nul = chunk.find(b"\0")
        n_pending = len(decoder.getstate()[0])  # bytes of a character that the last chunk cut in two
        try:
            text = decoder.decode(chunk)
        except UnicodeDecodeError as error:
            position = start - n_pending + error.start
            if nul < 0 or position < start + nul:
                raise _invalid_utf8(path, position) from None
        if nul >= 0:
            raise DataError(
                f"{path}: a NUL byte at byte offset {start + nul}; this is binary data, not text. Give a UTF-8 text "
                "file."
            )
        yield newlines.decode(text)
    pending = decoder.getstate()[0]
    if pending:
        raise _invalid_utf8(path, end - len(pending))
    rest = newlines.decode("", final=True)
    if rest:
        yield rest


def read_ascii(path: Path) -> Iterator[str]:
    """Yields the ASCII part of one file in pieces; every other byte is dropped.

    Raises:
        DataError: missing, unreadable or not a regular file.
    """
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    for _, chunk in _read_bytes(path):
        yield newlines.decode(chunk.decode("ascii", "ignore"))
    rest = newlines.decode("", final=True)
    if rest:
        yield rest


@dataclass(frozen=True)
class TextSummary:
    """What one pass over a text found.

    Attributes:
        n_characters: length of the text.
        alphabet: its distinct characters in code-point order.
        sha256: hex digest of its UTF-8 bytes, as trained.
    """

    n_characters: int
    alphabet: str
    sha256: str


def summarise(pieces: Iterable[str]) -> TextSummary:
    """Reads a text once, in pieces, in constant memory."""
    seen = np.zeros(_N_CODE_POINTS, dtype=bool)
    digest = hashlib.sha256()
    n_characters = 0
    for piece in pieces:
        seen[code_points(piece)] = True
        digest.update(piece.encode("utf-8"))
        n_characters += len(piece)
    alphabet = "".join(map(chr, np.flatnonzero(seen)))
    return TextSummary(n_characters, alphabet, digest.hexdigest())


def _read_bytes(path: Path) -> Iterator[tuple[int, bytes]]:
    check_regular_file(path)
    offset = 0
    try:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(CHUNK_BYTES):
                yield offset, chunk
                offset += len(chunk)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}) at byte offset {offset}.") from None


def _refuse_other_format(path: Path, chunk: bytes) -> None:
    for mark, what, command in _OTHER_FORMATS:
        if chunk.startswith(mark):
            unpack = f"Unpack it (`{command} {shlex.quote(path.name)}`) and give the text that comes out."
            raise DataError(
                f"{path}: is {what}, not a text. {unpack if command else 'Give a UTF-8 text file.'}"
            )


def _refuse_utf16(path: Path, chunk: bytes) -> None:
    encoding = None
    # The UTF-32 mark starts with the UTF-16 one, so it is looked for first.
    for mark, name in (
        (codecs.BOM_UTF32_LE, "UTF-32"),
        (codecs.BOM_UTF32_BE, "UTF-32"),
        (codecs.BOM_UTF16_LE, "UTF-16"),
        (codecs.BOM_UTF16_BE, "UTF-16"),
    ):
        if encoding is None and chunk.startswith(mark):
            encoding = f"{name} (byte-order mark at byte offset 0)"
    if encoding is None:
        # Without a mark, mostly Latin text in UTF-16 has a NUL in nearly every second byte.
        sample = np.frombuffer(chunk[: len(chunk[:_UTF16_SAMPLE_BYTES]) & ~1], dtype=np.uint8).reshape(-1, 2)
        if len(sample):
            shares = (sample == 0).mean(axis=0)
            if shares.max() > 0.5 and shares.min() < 0.1:
                first = int(np.flatnonzero(sample.reshape(-1) == 0)[0])
                encoding = f"UTF-16 without a byte-order mark (NUL bytes from byte offset {first})"
    if encoding is not None:
        raise DataError(f"{path}: looks like {encoding}, not UTF-8. {_REMEDY}")


def _invalid_utf8(path: Path, offset: int) -> DataError:
    return DataError(f"{path}: invalid UTF-8 at byte offset {offset}. {_REMEDY}")
