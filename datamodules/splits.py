"""A data set: the texts of its splits, and what identifies them."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from app.run.errors import DataError
from datamodules.hub import HubDataset, HubSplit
from datamodules.rows import ROW_SUFFIXES, read_jsonl, read_parquet
from datamodules.sources import TEXT_SUFFIXES, TextSource, files_below
from datamodules.text import check_regular_file, read_text

SPLITS = ("train", "val", "test")
SUFFIXES = (*TEXT_SUFFIXES, *ROW_SUFFIXES, ".tokens", ".raw")
_SPLIT_OF_WORD = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}


class SplitText(Protocol):
    """The text of one split, which may be read several times."""

    @property
    def label(self) -> str:
        """For messages."""

    @property
    def n_bytes(self) -> int:
        """About how long it is, for the progress bar."""

    def pieces(self) -> Iterator[str]:
        """Yields the text in pieces that fit in memory."""


@dataclass(frozen=True)
class DataSource:
    """The texts of a data set.

    Attributes:
        name: short, for folder names and the fingerprint.
        label: for messages.
        identity: plain values beside the files' content that tell one text from another.
        texts: by split, ``train`` at least; where it is the only one, the others are cut from its end.
        files: what the texts are read from; a change of one of them is a change of the text.
        license: of the data set, where it is known ahead.
    """

    name: str
    label: str
    identity: Mapping[str, Any]
    texts: Mapping[str, SplitText]
    files: tuple[Path, ...] = ()
    license: str | None = None

    def find_license(self) -> str | None:
        """The licence that is known, or the one that the hub's data set states."""
        return (
            self.texts.dataset.license
            if isinstance(self.texts, HubTexts) and not self.license
            else self.license
        )


@dataclass(frozen=True)
class HubTexts(Mapping[str, SplitText]):
    """The splits of a hub data set, asked for when the text is needed: one that is prepared needs no network.

    Attributes:
        dataset: on the hub.
    """

    dataset: HubDataset
    _names: dict[str, str] = field(default_factory=dict)

    def _found(self) -> dict[str, str]:
        if not self._names:
            for name in self.dataset.opened:
                self._names.setdefault(_SPLIT_OF_WORD.get(name, name), name)
            if "train" not in self._names:
                raise DataError(
                    f"{self.dataset.label}: has no split train; there are {', '.join(self.dataset.opened)}."
                )
        return self._names

    def __getitem__(self, split: str) -> SplitText:
        return HubSplit(self.dataset, self._found()[split])

    def __iter__(self) -> Iterator[str]:
        return iter([split for split in SPLITS if split in self._found()])

    def __len__(self) -> int:
        return len(list(iter(self)))


def local_source(path: Path, text_column: str, name: str = "text", blank_row: str = "\n") -> DataSource:
    """A data set of files: one text, or the splits that the names of a folder's files tell.

    A file whose name holds the word ``train``, ``val``, ``valid``, ``validation``, ``dev`` or ``test``
    between dots, dashes or underscores belongs to that split, and so does what lies in a sub-folder of such a
    name; in a folder with a ``train``, other files do not count.

    Args:
        path: a text file (any other ending), ``.jsonl``, ``.ndjson``, ``.parquet``, or a folder of them.
        text_column: the field with the text, for rows.
        name: of the data set.
        blank_row: what an empty text of a parquet row stands for.

    Raises:
        DataError: nothing there, or nothing to train on.
    """
    if not os.path.isdir(path):  # Path.is_dir raises where the name is too long
        check_regular_file(path)
        files: dict[str, list[Path]] = {"train": [path]}
    else:
        below = files_below(path, SUFFIXES)
        found = sorted(below, key=lambda file: file.relative_to(path).as_posix())
        if not found:
            raise DataError(f"{path}: no text files in this folder; {', '.join(SUFFIXES)} are read.")
        files = {}
        for file in found:
            check_regular_file(file)  # before anything opens it, and hangs
            if (split := split_of(file.relative_to(path))) is not None:
                files.setdefault(split, []).append(file)
        if not files:
            files = {"train": found}
        elif "train" not in files:
            raise DataError(
                f"{path}: has files for {' and '.join(files)} but none for train; name one train.txt, "
                "train.jsonl or train.parquet, or give a single file as path."
            )
    read = partial(read_file, column=text_column, blank_row=blank_row)
    texts = {
        split: TextSource(
            "path",
            str(files[split][0] if len(files[split]) == 1 else path),
            tuple(files[split]),
            read,
            # Rows bring their own line ends.
            joint="" if all(file.suffix.lower() in ROW_SUFFIXES for file in files[split]) else "\n",
        )
        for split in SPLITS
        if split in files
    }
    every = tuple(file for text in texts.values() for file in text.files)
    identity: dict[str, Any] = {"splits": {split: len(text.files) for split, text in texts.items()}}
    if any(file.suffix.lower() in ROW_SUFFIXES for file in every):
        identity |= {"text_column": text_column, "blank_row": blank_row}
    return DataSource(name, str(path), identity, texts, every)


def split_of(relative: Path) -> str | None:
    """The split that a file belongs to by its name, or by that of a folder above it; None for neither."""
    for part in (relative.name, *reversed(relative.parent.parts)):
        words = {_SPLIT_OF_WORD[word] for word in re.split(r"[-_.]", part.lower()) if word in _SPLIT_OF_WORD}
        if len(words) == 1:
            return words.pop()
    return None


def read_file(path: Path, column: str, blank_row: str = "\n") -> Iterator[str]:
    """Yields the text of one file by its ending, in pieces."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return read_parquet(path, column, blank_row)
    if suffix in ROW_SUFFIXES:
        return read_jsonl(path, column)
    return read_text(path)
