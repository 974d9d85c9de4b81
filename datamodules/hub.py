"""Text data sets of the Hugging Face hub, fetched and checked through ``datasets``."""

import contextlib
import errno
import hashlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from app.run.errors import DataError, StorageError
from datamodules.progress import Progress
from datamodules.rows import ROWS_AT_ONCE, first_line, import_datasets, missing_column, row_text

_SHA256 = re.compile(r"[0-9a-f]{64}")


class OfflineError(DataError):
    """A data set that is not here and cannot be fetched now."""


@dataclass(frozen=True)
class HubSplit:
    """One split of a data set of the hub, downloaded by ``datasets`` into its own cache and read from there.

    Attributes:
        dataset: the data set, and how it was opened.
        split: its name there.
    """

    dataset: "HubDataset"
    split: str

    @property
    def label(self) -> str:
        return f"{self.dataset.label}, split {self.split}"

    @property
    def n_bytes(self) -> int:
        """About how many bytes of text there are."""
        return int(self.dataset.opened[self.split].data.nbytes)

    def pieces(self) -> Iterator[str]:
        """Yields the text in pieces; may be called again for another pass.

        Raises:
            DataError: a row without text; it is named.
        """
        column, number = self.dataset.text_column, 0
        rows = self.dataset.opened[self.split].select_columns([column])
        for batch in rows.iter(ROWS_AT_ONCE):
            for value in batch[column]:
                number += 1
                yield row_text(value, f"{self.label}, row {number}", column, self.dataset.blank_row)


@dataclass(frozen=True)
class HubDataset:
    """A text data set on the Hugging Face hub.

    Attributes:
        path: ``owner/name``.
        name: its configuration; None where it has one only.
        revision: commit, tag or branch; None takes the newest, once.
        text_column: the field with the text.
        blank_row: what an empty text stands for.
    """

    path: str
    name: str | None = None
    revision: str | None = None
    text_column: str = "text"
    blank_row: str = "\n"

    @property
    def label(self) -> str:
        return f"{self.path} ({self.name})" if self.name else self.path

    @cached_property
    def opened(self) -> Any:
        """The splits by name, downloaded where they are not in the cache of ``datasets``.

        A transfer that breaks off keeps the files that are complete. Files are held against the SHA-256 that the
        hub states; one that differs is fetched once more.

        Raises:
            OfflineError: the hub cannot be reached.
            DataError: no such data set, configuration or column, or a file that comes damaged.
            StorageError: there is no room for the download.
        """
        datasets = import_datasets()
        progress = Progress(f"prepare  {self.label}")
        if not (progress.plain or progress.is_quiet):
            datasets.utils.logging.enable_progress_bar()
        is_offline = not _reaches_hub()
        if is_offline:
            _go_offline()
        else:
            progress.note("from the hub, or the cache of datasets where it has been fetched before")
        found = self._load(is_offline)
        names = next(iter(found.values())).column_names
        if self.text_column not in names:
            raise missing_column(self.label, self.text_column, names)
        return found

    @cached_property
    def license(self) -> str | None:
        """What the data set's own card says; None where it says nothing, or has not been fetched."""
        import huggingface_hub

        cards = self._downloads.glob("snapshots/*/README.md")
        try:
            newest = max(cards, key=lambda card: (card.parent.name == self.revision, card.stat().st_mtime_ns))
            stated = (huggingface_hub.metadata_load(newest) or {}).get("license")
        except Exception:  # no card, or one that is not as the hub wants it
            return None
        return ", ".join(map(str, stated if isinstance(stated, list) else [stated])) if stated else None

    @property
    def _downloads(self) -> Path:
        """Where the library keeps what it has fetched of this data set."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=self.path, repo_type="dataset"))

    def _load(self, is_offline: bool) -> Any:
        datasets = import_datasets()
        for _ in range(2):
            found, failure = {}, None
            try:
                found = datasets.load_dataset(self.path, self.name, revision=self.revision)
            except Exception as error:  # of the library and of all those below it, which share no base
                failure = error
            damaged = [] if is_offline else self._damaged_files()
            if not damaged:
                if failure is not None:
                    raise self._refusal(failure, is_offline) from None
                return found
            for file in damaged:
                file.unlink(missing_ok=True)
            # What the library has made of them would be found again.
            made = {Path(file["filename"]).parent for split in found.values() for file in split.cache_files}
            for folder in made:
                shutil.rmtree(folder, ignore_errors=True)
        raise DataError(
            f"{self.label}: {len(damaged)} of the downloaded files, {damaged[0].name} among them, have another "
            "SHA-256 than the hub states, now and at a second attempt. Try again later."
        )

    def _damaged_files(self) -> list[Path]:
        """Downloaded files that differ from what the hub states, which is what the library names them by."""
        damaged = []
        with contextlib.suppress(OSError):  # such as no such folder
            for file in sorted((self._downloads / "blobs").iterdir()):
                if _SHA256.fullmatch(file.name):
                    with file.open("rb") as opened:
                        if hashlib.file_digest(opened, "sha256").hexdigest() != file.name:
                            damaged.append(file)
        return damaged

    def _refusal(self, error: Exception, is_offline: bool) -> DataError | StorageError:
        """What a person is told of a failure."""
        if is_offline:
            return OfflineError(f"{self.label}: the hub cannot be reached")
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            return StorageError(
                f"{self.label}: cannot be kept in the cache of datasets ({error.strerror}). Set HF_HOME to a folder "
                "with more room."
            )
        reason = first_line(error.__cause__ or error)
        if isinstance(error, ConnectionError) or not _reaches_hub():
            return OfflineError(f"{self.label}: the hub cannot be reached ({reason})")
        return DataError(
            f"{self.label}: cannot be loaded ({reason}). Files that have arrived whole are kept."
        )


def _reaches_hub() -> bool:
    """Whether the hub's address answers; behind a proxy only an attempt can tell.

    Without a network the library would try for half a minute.
    """
    import socket
    import urllib.parse
    import urllib.request

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies().keys() - {"no"}:
        return True
    endpoint = urllib.parse.urlsplit(constants.ENDPOINT)
    port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
    try:
        socket.create_connection((endpoint.hostname or "", port), timeout=10).close()
    except OSError:
        return False
    return True


def _go_offline() -> None:
    """Looks into the caches only; what an earlier use of the library has left there still counts."""
    import datasets
    from huggingface_hub import constants

    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
