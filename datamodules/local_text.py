"""Text files of one's own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.options import Given
from app.run.paths import typed_path
from datamodules.base import PathName
from datamodules.prepared import PreparedDataModule
from datamodules.sources import TEXT_SUFFIXES
from datamodules.splits import SPLIT_OPTION, SUFFIXES, DataSource, local_source


class TextDataModule(PreparedDataModule):
    """Text of your own: files, JSON lines, parquet, or a folder; tokenised once.

    Args:
        path: the file (``.jsonl`` and ``.ndjson``: one JSON object per line; ``.parquet``; any other ending:
            UTF-8 text) or the folder. In a folder, a file with ``train``, ``valid`` or ``test`` in its name
            belongs to that split; without such names all files are one text, in the order of their paths.
        split_by_name: whether the names of a folder's files tell the splits, as :mod:`datamodules.split_names` says;
            false makes all of them one text.
        text_column: the field with the text, of JSON lines and parquet.
        prepared: options of :class:`~datamodules.prepared.PreparedDataModule`.
    """

    def __init__(
        self, path: PathName, text_column: str = "text", *, split_by_name: bool = True, **prepared: Any
    ):
        super().__init__(**prepared)
        self.path = path
        self.split_by_name = split_by_name
        self.text_column = text_column

    @staticmethod
    def without_effect(given: Given) -> Iterator[tuple[str, str]]:
        yield from PreparedDataModule.without_effect(given)
        suffix = Path(given.path).suffix.lower()
        if suffix in TEXT_SUFFIXES:
            yield "text_column", f"with a {suffix} file"
        if suffix in SUFFIXES:
            yield "split_by_name", f"with a {suffix} file"

    def open_source(self) -> DataSource:
        """The files.

        Raises:
            DataError: nothing there, or nothing to train on.
        """
        path, column = Path(typed_path(self.path)), self.text_column
        return local_source(path, column, by_name=self.split_by_name, option=SPLIT_OPTION)
