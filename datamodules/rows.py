"""Texts that come in rows: JSON lines, parquet files and data sets of the Hugging Face hub.

The text of a row is one field of it. Rows are joined by line ends: a row that does not end with one gets it.
Within a row the rules of :mod:`datamodules.text` hold: line ends become ``\\n``, NUL characters are refused.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from app.run.errors import DataError
from datamodules.text import check_regular_file, read_text

ROW_SUFFIXES = (".jsonl", ".ndjson", ".parquet")
MAX_ROW_CHARACTERS = 64 << 20  # a row is held in memory whole
_ROWS_AT_ONCE = 64


def row_text(value: Any, where: str, column: str, blank_row: str = "\n") -> str:
    """The text of one row with its line end.

    Args:
        value: of the row's text field.
        where: file and row, for the message.
        column: name of the field.
        blank_row: what an empty text stands for.

    Raises:
        DataError: no text, too long a text, a NUL character, or half a character.
    """
    if not isinstance(value, str):
        found = "is missing or null" if value is None else f"is {type(value).__name__}, not a text"
        raise DataError(f"{where}: {column!r} {found}.")
    if len(value) > MAX_ROW_CHARACTERS:
        raise DataError(f"{where}: longer than {MAX_ROW_CHARACTERS:,} characters; split it into rows.")
    if "\0" in value:
        raise DataError(f"{where}: a NUL character at position {value.index(chr(0))}; this is no text.")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: U+{ord(value[error.start]):04X} at position {error.start} is half a character."
            ) from None
    if not value:
        return blank_row
    if "\r" in value:
        value = value.replace("\r\n", "\n").replace("\r", "\n")
    return value if value.endswith("\n") else value + "\n"


def read_jsonl(path: Path, column: str) -> Iterator[str]:
    """Yields the texts of a file with one JSON object per line; empty lines are passed over.

    Raises:
        DataError: not UTF-8, or a line that is no such object; file and row are named, counted from 1.
    """
    number, rest = 0, ""
    for piece in read_text(path):
        *lines, rest = (rest + piece).split("\n")
        if len(rest) > MAX_ROW_CHARACTERS:
            raise DataError(
                f"{path}, row {number + len(lines) + 1}: longer than {MAX_ROW_CHARACTERS:,} characters; "
                "is this a file with one JSON object per line?"
            )
        for line in lines:
            number += 1
            yield from _json_row(line, path, number, column)
    yield from _json_row(rest, path, number + 1, column)


def _json_row(line: str, path: Path, number: int, column: str) -> Iterator[str]:
    if not line or line.isspace():
        return
    where = f"{path}, row {number}"
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        is_deep = isinstance(error, RecursionError)
        reason = "nested too deep" if is_deep else getattr(error, "msg", "a number of too many digits")
        raise DataError(f"{where}: no JSON ({reason}).") from None
    if not isinstance(values, dict):
        raise DataError(
            f"{where}: holds {type(values).__name__}, must be an object with the field {column!r}."
        )
    yield row_text(values.get(column), where, column)


def read_parquet(path: Path, column: str, blank_row: str = "\n") -> Iterator[str]:
    """Yields the texts of a parquet file, through ``datasets``, a few rows in memory at a time.

    Raises:
        DataError: no parquet file, no such column, or a row without text; file and row are named, from 1.
    """
    check_regular_file(path)
    datasets = import_datasets()
    number = 0
    try:
        rows = datasets.load_dataset(
            "parquet",
            data_files=[str(path.absolute())],
            split="train",
            streaming=True,
            batch_size=_ROWS_AT_ONCE,  # the default is a whole row group, however much it unpacks to
        )
        names = rows.column_names or list(rows.features or ())
        if column not in names:
            raise DataError(
                f"{path}: no column {column!r}; there are {', '.join(map(repr, names)) or 'none'}."
            )
        for batch in rows.select_columns([column]).iter(_ROWS_AT_ONCE):
            for value in batch[column]:
                number += 1
                yield row_text(value, f"{path}, row {number}", column, blank_row)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise DataError(
            f"{path}: no readable parquet file after row {number} ({_first_line(error)})."
        ) from None


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
        """For messages."""
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
        for batch in rows.iter(_ROWS_AT_ONCE):
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
        """For messages."""
        return f"{self.path} ({self.name})" if self.name else self.path

    @cached_property
    def opened(self) -> Any:
        """The splits by name, downloaded where they are not in the cache of ``datasets``.

        Raises:
            OfflineError: the hub cannot be reached.
            DataError: no such data set, configuration or column.
        """
        datasets = import_datasets()
        is_offline = not _reaches_hub()
        if is_offline:
            _go_offline()
        try:
            found = datasets.load_dataset(self.path, self.name, revision=self.revision)
        except (OSError, ValueError, RuntimeError) as error:
            if is_offline:
                raise OfflineError(f"{self.label}: the hub cannot be reached") from None
            if isinstance(error, ConnectionError):
                raise OfflineError(
                    f"{self.label}: the hub cannot be reached ({_first_line(error)})"
                ) from None
            raise DataError(f"{self.label}: cannot be loaded ({_first_line(error)}).") from None
        names = next(iter(found.values())).column_names
        if self.text_column not in names:
            raise DataError(
                f"text_column: {self.label} has no column {self.text_column!r}; there are {', '.join(names)}."
            )
        return found

    @property
    def license(self) -> str | None:
        """What the data set's own card says."""
        return next(iter(self.opened.values())).info.license or None


class OfflineError(DataError):
    """A data set that is not here and cannot be fetched now."""


def import_datasets() -> Any:
    """The library, which takes seconds to import, without its report of what is loaded to a server."""
    import datasets

    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    datasets.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity(50)  # its errors reach us as exceptions
    return datasets


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
    if urllib.request.getproxies():
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


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
