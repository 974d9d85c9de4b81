"""A data set: the texts of its splits, and what identifies them."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePath
from typing import Any, Protocol

from app.run.errors import DataError
from datamodules.folders import read_folder
from datamodules.hub import HubDataset, HubSplit
from datamodules.listing import Listing, some
from datamodules.rows import ROW_SUFFIXES, read_jsonl, read_parquet
from datamodules.sources import TEXT_SUFFIXES, TextSource
from datamodules.split_names import NAMES, SPLITS, UnclearName, names_split, split_of
from datamodules.text import check_regular_file, read_text

SUFFIXES = (*TEXT_SUFFIXES, *ROW_SUFFIXES)
#: what a message tells a person whose file names mean something else
SPLIT_OPTION = "split_by_name: false"


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
        listing: what was read and left out; None for a single file, and for the hub until it is asked.
    """

    name: str
    label: str
    identity: Mapping[str, Any]
    texts: Mapping[str, SplitText]
    files: tuple[Path, ...] = ()
    license: str | None = None
    listing: Listing | None = None

    def find_license(self) -> str | None:
        """The licence that is known, or the one that the hub's data set states."""
        return (
            self.texts.dataset.license
            if isinstance(self.texts, HubTexts) and not self.license
            else self.license
        )

    def find_listing(self) -> Listing | None:
        """What was read and left out; of the hub's data set once its text is needed."""
        return self.texts.listing if isinstance(self.texts, HubTexts) else self.listing


@dataclass(frozen=True)
class HubTexts(Mapping[str, SplitText]):
    """The splits of a hub data set, asked for when the text is needed: one that is prepared needs no network.

    They are told by the words of their names, as those of files are. Where several mean one split, the one that has
    that word alone for its name is it; the others, and those that leave it open, are left out.

    Attributes:
        dataset: on the hub.
    """

    dataset: HubDataset

    @cached_property
    def listing(self) -> Listing:
        """Which of its splits are read, one for each of ours, and which are not.

        Raises:
            DataError: none to train on, or several for one split.
        """
        names: dict[str, list[str]] = {}
        skipped: dict[str, list[str]] = {}
        for name in self.dataset.opened:
            try:
                split = split_of(PurePath(name))
            except UnclearName as error:
                skipped.setdefault(f"unclear: {error}", []).append(name)
                continue
            if split is None:
                skipped.setdefault("no split in the name", []).append(name)
            else:
                names.setdefault(split, []).append(name)
        for split, found in names.items():
            alone = [name for name in found if names_split(name)]
            if len(found) > 1 and len(alone) != 1:
                raise DataError(
                    f"{self.dataset.label}: several of its splits are for {NAMES[split]}: {some(found)}. Save those "
                    "that you mean as train.jsonl, valid.jsonl and test.jsonl, and read them with TextDataModule."
                )
            if others := [name for name in found if alone and name != alone[0]]:
                skipped.setdefault(f"{alone[0]} is read", []).extend(others)
            names[split] = alone or found
        if "train" not in names:
            raise DataError(
                f"{self.dataset.label}: has no split train; there are {', '.join(self.dataset.opened)}."
            )
        return Listing({split: names[split] for split in SPLITS if split in names}, skipped)

    def __getitem__(self, split: str) -> SplitText:
        return HubSplit(self.dataset, self.listing.read[split][0])

    def __iter__(self) -> Iterator[str]:
        return iter(self.listing.read)

    def __len__(self) -> int:
        return len(self.listing.read)


def local_source(
    path: Path,
    text_column: str | None,
    name: str = "text",
    blank_row: str = "\n",
    *,
    by_name: bool = True,
    option: str = "",
) -> DataSource:
    """A data set of files: one text, or the splits that the names of a folder's files tell.

    See :func:`datamodules.folders.read_folder` for what is read of a folder.

    Args:
        path: a text file (any other ending), ``.jsonl``, ``.ndjson``, ``.parquet``, or a folder of them.
        text_column: the field with the text, for rows; None where there are no rows and every file is text.
        name: of the data set.
        blank_row: what an empty text of a parquet row stands for.
        by_name: whether names tell splits; otherwise a folder is one text.
        option: how a person turns ``by_name`` off, for messages; empty where it cannot be.

    Raises:
        DataError: nothing there, nothing to train on, or names that leave it open what to train on.
    """
    listing = None
    if os.path.isdir(path):  # Path.is_dir raises where the name is too long
        suffixes = TEXT_SUFFIXES if text_column is None else SUFFIXES
        files, listing = read_folder(path, suffixes, by_name, option)
    else:
        check_regular_file(path)
        files = {"train": (path,)}
    rows = () if text_column is None else ROW_SUFFIXES
    read = partial(read_file, column=text_column, blank_row=blank_row)
    texts = {
        split: TextSource(
            "path",
            str(group[0] if len(group) == 1 else path),
            group,
            read,
            # Rows bring their own line ends.
            joint="" if all(file.suffix.lower() in rows for file in group) else "\n",
        )
        for split, group in files.items()
    }
    every = tuple(file for group in files.values() for file in group)
    identity: dict[str, Any] = {"splits": {split: len(group) for split, group in files.items()}}
    if any(file.suffix.lower() in rows for file in every):
        identity |= {"text_column": text_column, "blank_row": blank_row}
    return DataSource(name, str(path), identity, texts, every, listing=listing)


def read_file(path: Path, column: str | None, blank_row: str = "\n") -> Iterator[str]:
    """Yields the text of one file, in pieces: by its ending, or as text where there is no column."""
    suffix = path.suffix.lower()
    if column is not None and suffix == ".parquet":
        return read_parquet(path, column, blank_row)
    if column is not None and suffix in ROW_SUFFIXES:
        return read_jsonl(path, column)
    return read_text(path)
