"""Whether files are still what they were, without reading them each time."""

import contextlib
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.run.atomic import make_directory, write_text
from app.run.bounded import MAX_TABLE_BYTES, parse_json, read_bytes
from app.run.errors import AppError, DataError
from app.run.strict_json import to_json


class FileHashes:
    """SHA-256 of files, remembered for as long as size, times and inode stay what they were.

    Args:
        index: JSON file with what is remembered.
    """

    # A file changed within one tick of the file system's clock after it was read looks unchanged.
    _SETTLED_NS = 2_000_000_000

    def __init__(self, index: Path):
        self.index = index
        self.changed: list[Path] = []
        self._hashed: dict[Path, list[int]] = {}
        try:
            kept = dict(parse_json(read_bytes(index, MAX_TABLE_BYTES)))
        except (OSError, ValueError, TypeError):
            kept = {}
        self._known: dict[str, list[Any]] = {
            place: entry for place, entry in kept.items() if isinstance(entry, list) and entry
        }

    def of(self, files: Sequence[Path]) -> list[str]:
        """Digests of files, in order; :attr:`changed` names those that were others before.

        Raises:
            DataError: one cannot be read.
        """
        digests, before = [], dict(self._known)
        for file in files:
            place = str(file.absolute())
            signature = self._hashed[file] = self.signature(file)
            known = self._known.get(place)
            if known is None or known[:-1] != signature:
                # Zeros for a file so fresh that a further change may not show; no signature is like them.
                is_settled = time.time_ns() - max(signature[1:3]) > self._SETTLED_NS
                digest = self._hash(file)
                if known is not None and known[-1] != digest:
                    self.changed.append(file)
                self._known[place] = [*(signature if is_settled else [0] * len(signature)), digest]
            digests.append(str(self._known[place][-1]))
        if self._known != before:
            # Only what is remembered gets lost where this cannot be written.
            with contextlib.suppress(AppError, OSError):
                make_directory(self.index.parent)
                write_text(self.index, to_json(self._known, indent=0) + "\n")
        return digests

    def are_as_hashed(self, files: Sequence[Path]) -> bool:
        """Whether files are still those whose digests :meth:`of` has given last.

        Raises:
            DataError: one cannot be read.
        """
        return all(self.signature(file) == self._hashed[file] for file in files)

    @classmethod
    def signature(cls, file: Path) -> list[int]:
        """What tells without reading that a file has changed: size, times and inode."""
        try:
            status = file.stat()
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror}).") from None
        return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]

    @staticmethod
    def _hash(file: Path) -> str:
        try:
            with file.open("rb") as opened:
                return hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror}).") from None
