"""Characters of a text: the embedded default, a small downloaded corpus, or the user's own files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from app.options import Given, Probability, Within
from app.run.paths import typed_path
from datamodules.base import PathName, TokenDataModule, fractions_problem
from datamodules.corpus import Corpus, read_char_corpus
from datamodules.sources import SourceName, open_source
from datamodules.splits import SPLIT_OPTION, DataSource, local_source


class CharDataModule(TokenDataModule):
    """Character-level language modelling on one text, split into consecutive parts.

    Args:
        source: ``stdlib`` (the default): source of the running Python's top-level standard-library modules,
            ASCII part, no network needed. ``stdlib_full``: the same of all packages. ``tinyshakespeare``:
            downloaded once into ``data_dir``.
        path: a UTF-8 text file, or a folder of them (``.txt``, ``.text``, ``.md``, ``.rst``, ``.py``, ``.tokens``,
            ``.raw``), whose names tell the splits or which are joined in order; instead of ``source``.
        split_by_name: whether the names of a folder's files tell the splits, as :mod:`datamodules.split_names` says;
            false joins all of them.
        val_fraction: share of the text for validation, after the training part; where no file is named so.
        test_fraction: share at the end for the test split, in the same case.
        data_dir: folder for the downloaded text, and for the temporary file of a very large one.
        windows: options of :class:`~datamodules.base.TokenDataModule`.
    """

    def __init__(
        self,
        source: SourceName | None = None,
        path: PathName | None = None,
        *,
        val_fraction: Annotated[float, Within("(0, 1)")] = 0.1,
        test_fraction: Probability = 0.0,
        data_dir: PathName = "data",
        split_by_name: bool = True,
        **windows: Any,
    ):
        super().__init__(**windows)
        self.source = source
        self.path = path
        self.split_by_name = split_by_name
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.data_dir = data_dir

    @staticmethod
    def conflicts(given: Given) -> Iterator[tuple[str, str]]:
        yield from TokenDataModule.conflicts(given)
        if given.source is not None and given.path is not None:
            yield "source", f"and path {given.path!r} are both given; keep one of them"
        yield from fractions_problem(given)

    @staticmethod
    def without_effect(given: Given) -> Iterator[tuple[str, str]]:
        if given.path is None:
            yield "split_by_name", "without a path"

    @property
    def kept_in(self) -> Path:
        return Path(typed_path(self.data_dir))

    def open_source(self) -> DataSource:
        """The files, or the built-in text.

        Raises:
            DataError: nothing there, or nothing to train on.
        """
        if self.path is not None:
            path, option = Path(typed_path(self.path)), SPLIT_OPTION
            return local_source(path, None, "path", by_name=self.split_by_name, option=option)
        text = open_source(self.source, self.data_dir)
        return DataSource(text.name, text.label, text.details, {"train": text}, text.files, text.license)

    def read_corpus(self) -> Corpus:
        """Reads, tokenises and splits the text.

        Raises:
            DataError: the text cannot be used.
        """
        return read_char_corpus(
            self.open_source(),
            block_size=self.block_size,
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            data_dir=Path(typed_path(self.data_dir)),
        )
