"""Files that are downloaded once, checked, and kept."""

import fcntl
import hashlib
import http.client
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from app.run.atomic import staged, sync_directory
from app.run.errors import DataError, StorageError
from datamodules.text import check_regular_file

_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Download:
    """One file with a known content.

    Attributes:
        url: where it is.
        file_name: its name in the data folder.
        n_bytes: its size.
        sha256: hex digest of its content.
    """

    url: str
    file_name: str
    n_bytes: int
    sha256: str

    def fetch(self, data_dir: Path) -> Path:
        """Path of the verified file below ``data_dir``, downloaded if it is not there.

        Several processes download once: the first holds a lock, the others wait and find the file. The file
        appears under its name only when it is complete and verified.

        Raises:
            DataError: it cannot be downloaded, or what was downloaded or put there by hand differs.
            StorageError: ``data_dir`` cannot be written.
        """
        target = data_dir / self.file_name
        if not target.exists():
            try:
                data_dir.mkdir(parents=True, exist_ok=True)
                with _locked(data_dir / f".{self.file_name}.lock"):
                    if not target.exists():
                        self._save(self._receive(target), target)
            except OSError as error:
                raise StorageError(
                    f"{target}: cannot be written ({error.strerror}). Set data_dir to another folder."
                ) from None
        return self._verified(target)

    def _verified(self, target: Path) -> Path:
        check_regular_file(target)
        try:
            digest = hashlib.sha256(target.read_bytes()).hexdigest()
        except OSError as error:
            raise DataError(f"{target}: cannot be read ({error.strerror}).") from None
        if digest != self.sha256:
            raise DataError(
                f"{target}: SHA-256 {digest} is not the expected {self.sha256}. "
                "Delete the file to download it again, or use it as it is with `path`."
            )
        return target

    def _receive(self, target: Path) -> bytes:
        try:
            with urllib.request.urlopen(self.url, timeout=_TIMEOUT_SECONDS) as response:
                # One byte more than expected is enough to see that the content is another one.
                content = bytes(response.read(self.n_bytes + 1))
        except (OSError, http.client.HTTPException) as error:
            raise DataError(self._failure(target, f"the download failed ({_reason(error)})")) from None
        if len(content) < self.n_bytes:
            raise DataError(
                self._failure(target, f"the transfer broke off after {len(content)} of {self.n_bytes} bytes")
            )
        digest = hashlib.sha256(content).hexdigest()
        if digest != self.sha256:
            raise DataError(self._failure(target, f"the downloaded content has another SHA-256, {digest}"))
        return content

    def _failure(self, target: Path, what: str) -> str:
        return (
            f"{self.url}: {what}. Try again, or put the file by hand at {target.absolute()} "
            f"({self.n_bytes} bytes, SHA-256 {self.sha256})."
        )

    @staticmethod
    def _save(content: bytes, target: Path) -> None:
        with staged(target) as temporary:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
            sync_directory(target.parent)


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error) or type(error).__name__


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock that the system releases when the process ends, however it ends."""
    with path.open("w") as file:
        # Some network file systems have no locks; the download is then done twice, which is harmless.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
