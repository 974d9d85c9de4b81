"""Texts that come in rows: JSON lines and parquet files.

The text of a row is one field of it. Rows are joined by line ends: a row that does not end with one gets it.
Within a row the rules of :mod:`datamodules.text` hold: line ends become ``\\n``, NUL characters are refused.
"""

import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from app.run.bounded import open_regular
from app.run.errors import DataError
from datamodules.parquet_pages import largest_page
from datamodules.text import check_regular_file, read_text

ROW_SUFFIXES = (".jsonl", ".ndjson", ".parquet")
MAX_ROW_CHARACTERS = 64 << 20  # a row is held in memory whole
ROWS_AT_ONCE = 64
#: of a parquet file: read ahead of what is unpacked, and about how much of it is unpacked at once
_BUFFER_BYTES = 1 << 20
_BATCH_BYTES = 4 << 20
_MAX_BATCH_ROWS = 4096
_MOST_BATCH_BYTES = 128 << 20  # where every row of a batch is as long as a page of the file allows


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
        found = "is null" if value is None else f"is {type(value).__name__}, not a text"
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
    if column not in values:
        raise missing_column(where, column, values)
    yield row_text(values[column], where, column)


def read_parquet(path: Path, column: str, blank_row: str = "\n") -> Iterator[str]:
    """Yields the texts of a parquet file, a few rows in memory at a time.

    Read with the library below ``datasets``, which itself unpacks a whole row group: as large as a file may be.

    Raises:
        DataError: no parquet file, no such column, or a row without text; file and row are named, from 1.
    """
    check_regular_file(path)
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES) as file:
            names = file.schema_arrow.names
            if column not in names:
                raise missing_column(str(path), column, names)
            groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
            n_bytes = sum(group.total_byte_size for group in groups) // max(file.metadata.num_rows, 1)
            n_rows = min(_BATCH_BYTES // max(n_bytes, 1), _MAX_BATCH_ROWS)
            paths = [file.schema.column(leaf).path for leaf in range(len(file.schema))]
            leaves = [leaf for leaf, path_to in enumerate(paths) if path_to.partition(".")[0] == column]
            with open_regular(path) as stream:
                largest = largest_page(stream, leaves, os.fstat(stream.fileno()).st_size)
            n_rows = max(min(n_rows, _MOST_BATCH_BYTES // max(largest, 1)), 1)
            for batch in file.iter_batches(n_rows, columns=[column], use_threads=False):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield row_text(value, f"{path}, row {number}", column, blank_row)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise DataError(
            f"{path}: no readable parquet file after row {number} ({first_line(error)})."
        ) from None


def missing_column(where: str, column: str, names: Iterable[str]) -> DataError:
    """The message for rows without the field that should hold their text.

    Args:
        where: file, or file and row.
        column: the field.
        names: of the fields that there are.
    """
    found = ", ".join(map(repr, islice(names, 20))) or "none"
    return DataError(
        f"{where}: no field {column!r}; there are {found}. Set text_column to the one with the text."
    )


def import_datasets() -> Any:
    """The library, which takes seconds to import, without its report of what is loaded to a server."""
    import datasets
    import huggingface_hub.utils

    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    datasets.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity(50)  # its errors reach us as exceptions
    huggingface_hub.utils.logging.set_verbosity(50)
    return datasets


def first_line(error: BaseException) -> str:
    """What a library says first, or the kind of its error where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
