"""Files that are downloaded once, checked, and kept."""

import hashlib
import http
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.run.atomic import make_directory, publish
from app.run.errors import DataError, StorageError
from datamodules.lock import exclusive
from datamodules.text import check_regular_file

_TIMEOUT_SECONDS = 30.0
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Download:
    """One file with a known content.

    Attributes:
        url: where it is.
        file_name: its name in the data folder.
        n_bytes: its size.
        sha256: hex digest of its content.
        otherwise: options that do without it; empty where nothing does.
    """

    url: str
    file_name: str
    n_bytes: int
    sha256: str
    otherwise: str = ""

    def fetch(self, data_dir: Path) -> Path:
        """Path of the verified file below ``data_dir``, downloaded if it is not there.

        Several processes download once: the first holds a lock, the others wait and find the file. The file
        appears under its name only when it is complete and verified. A transfer that breaks off goes on at the
        next call where it ended.

        Raises:
            DataError: it cannot be downloaded, or what was downloaded or put there by hand differs.
            StorageError: ``data_dir`` cannot be written.
        """
        target = data_dir / self.file_name
        if not target.exists():
            try:
                make_directory(data_dir)
                with exclusive(data_dir / f".{self.file_name}.lock"):
                    if not target.exists():
                        partial = data_dir / f".{self.file_name}.part"
                        self._receive(partial, target)
                        publish(partial, target)
            except OSError as error:
                raise StorageError(
                    f"{target}: cannot be written ({error.strerror}). Set data_dir to another folder."
                ) from None
        return self._verified(target)

    def _verified(self, target: Path) -> Path:
        check_regular_file(target)
        digest = self._digest(target)
        if digest != self.sha256:
            raise DataError(
                f"{target}: SHA-256 {digest} is not the expected {self.sha256}. "
                "Delete the file to download it again, or use it as it is with `path`."
            )
        return target

    def _receive(self, partial: Path, target: Path) -> None:
        """Completes and verifies the partial file, which goes on where an interrupted transfer has left it."""
        n_before = partial.stat().st_size if partial.exists() else 0
        if n_before < self.n_bytes:
            self._transfer(partial, n_before, target)
        n_bytes, digest = partial.stat().st_size, self._digest(partial)
        if digest == self.sha256:
            return
        if n_bytes < self.n_bytes:
            raise DataError(
                self._failure(
                    target, f"the transfer broke off after {n_bytes} of {self.n_bytes} bytes, which are kept"
                )
            )
        partial.unlink()
        if n_before:  # what was kept may have been of another file
            self._receive(partial, target)
            return
        raise DataError(self._failure(target, f"the downloaded content has another SHA-256, {digest}"))

    def _transfer(self, partial: Path, n_before: int, target: Path) -> None:
        request = urllib.request.Request(self.url)
        if n_before:
            request.add_header("Range", f"bytes={n_before}-")
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
                goes_on = response.status == 206 and response.headers.get("Content-Range", "").startswith(
                    f"bytes {n_before}-"
                )
                chunks = self._chunks(response, self.n_bytes - (n_before if goes_on else 0), target)
                with partial.open("ab" if goes_on else "wb") as file:
                    for chunk in chunks:
                        file.write(chunk)
                    file.flush()
                    os.fsync(file.fileno())
        except urllib.error.HTTPError as error:
            if n_before and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                # What was kept is as long as the file there, or longer: it is of another one.
                partial.unlink()
                self._transfer(partial, 0, target)
                return
            raise DataError(self._failure(target, f"the download failed ({error})")) from None
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            raise DataError(self._failure(target, f"the download failed ({_reason(error)})")) from None

    def _chunks(self, response: Any, n_expected: int, target: Path) -> Iterator[bytes]:
        """The body; one byte more than expected is enough to see that the content is another one."""
        n_left = n_expected + 1
        while n_left:
            try:
                chunk = response.read(min(n_left, _CHUNK_BYTES))
            except (OSError, http.client.HTTPException) as error:  # of the network, and not of the disk
                raise DataError(
                    self._failure(target, f"the transfer broke off ({_reason(error)}); what has come is kept")
                ) from None
            if not chunk:
                return
            n_left -= len(chunk)
            yield chunk

    @staticmethod
    def _digest(path: Path) -> str:
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}).") from None

    def _failure(self, target: Path, what: str) -> str:
        otherwise = (
            f" Without a network, {self.otherwise} reads a text that is here." if self.otherwise else ""
        )
        return (
            f"{self.url}: {what}. Try again, or put the file by hand at {target.absolute()} "
            f"({self.n_bytes} bytes, SHA-256 {self.sha256}).{otherwise}"
        )


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error) or type(error).__name__
