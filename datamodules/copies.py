"""Files that hold the same bytes."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from app.run.errors import DataError

#: bytes at either end by which files of equal length are told apart before they are read whole
_SAMPLE_BYTES = 1 << 16


def copies(paths: Sequence[Path]) -> dict[Path, Path]:
    """Each file whose bytes an earlier one holds, and that one; of empty files none is a copy.

    Raises:
        DataError: a file cannot be read.
    """
    found = {}
    for group in _alike(paths):
        first: dict[bytes, Path] = {}
        for path in group:
            original = first.setdefault(_digest(path, whole=True), path)
            if original is not path:
                found[path] = original
    return found


def _alike(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Groups of at least two files with the same length, beginning and end."""
    sizes: dict[int, list[Path]] = {}
    for path in paths:
        if size := path.stat().st_size:
            sizes.setdefault(size, []).append(path)
    for group in (group for group in sizes.values() if len(group) > 1):
        samples: dict[bytes, list[Path]] = {}
        for path in group:
            samples.setdefault(_digest(path, whole=False), []).append(path)
        yield from (alike for alike in samples.values() if len(alike) > 1)


def _digest(path: Path, whole: bool) -> bytes:
    try:
        with path.open("rb") as file:
            if whole:
                return hashlib.file_digest(file, "sha256").digest()
            head = file.read(_SAMPLE_BYTES)
            file.seek(max(file.tell(), path.stat().st_size - _SAMPLE_BYTES))
            return hashlib.sha256(head + file.read(_SAMPLE_BYTES)).digest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
