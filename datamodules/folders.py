"""The files of a folder: which of them are read, for which split, and which are not and why."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from app.run.errors import DataError
from datamodules import split_names
from datamodules.copies import copies
from datamodules.listing import MAX_NAMED, Listing, printable, some
from datamodules.split_names import NAMES, SPLITS, UnclearName
from datamodules.text import check_regular_file

_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip", ".7z", ".rar", ".tar", ".tgz", ".z")
_PICTURES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".svg", ".ico")
#: what may well be a split in a form that is not read, by the reason for which it is not
_DATA_OF_ENDING = {
    **dict.fromkeys(_COMPRESSED, "compressed: unpack it"),
    ".json": "JSON: only a .jsonl file with one object per line is read",
    ".csv": "a table: only texts and rows are read",
    ".tsv": "a table: only texts and rows are read",
    **dict.fromkeys((".jsonl", ".ndjson", ".parquet"), "rows: TextDataModule reads them"),
}
_REASON_OF_ENDING = {**_DATA_OF_ENDING, **dict.fromkeys(_PICTURES, "a picture"), "": "no ending"}
_HIDDEN, _LINKED, _OTHER = "hidden", "a link to a folder", "another ending than those that are read"
_UNNAMED, _COPY = "no split in the name, where others have one", "the same bytes"


class FolderFiles(NamedTuple):
    """The files of a folder that are read.

    Attributes:
        files: by split, in the order of their relative paths; ``train`` alone is the whole text.
        listing: for people.
    """

    files: Mapping[str, tuple[Path, ...]]
    listing: Listing


def read_folder(folder: Path, suffixes: Sequence[str], by_name: bool, option: str) -> FolderFiles:
    """Finds the files of a folder and its sub-folders, and which split each belongs to.

    Only what ends in one of ``suffixes``, or in the name of a split as do ``ptb.train`` and ``TrainSet``, is read;
    nothing hidden, and no folder behind a link. As soon as one name tells a split, what tells none is left out. Of
    files that hold the same bytes the first is read.

    Args:
        folder: the folder.
        suffixes: endings of files with text, in lower case.
        by_name: whether names tell splits, see :mod:`datamodules.split_names`; otherwise all files are one text.
        option: how a person turns ``by_name`` off, for messages; empty where it cannot be.

    Raises:
        DataError: nothing to read, names that leave their split open, a split without its training text, or two
            splits with the same text; each with the files.
    """
    skipped: dict[str, list[str]] = {}
    found: list[Path] = []
    unread: dict[PurePath, str] = {}
    for path, reason in _walk(folder, suffixes, by_name):
        if reason is None:
            check_regular_file(path)  # before anything opens it, and hangs
            found.append(path)
        else:
            skipped.setdefault(reason, []).append(_name(path, folder))
            if reason in _DATA_OF_ENDING.values():
                unread[path.relative_to(folder)] = reason
    if not found:
        others = "".join(f" {' '.join(line.split())}." for line in Listing({}, skipped).skipped_lines())
        raise DataError(
            f"{folder}: no text files in this folder; files ending in {', '.join(suffixes)} are read. Name a single "
            f"file to use another ending.{others}"
        )
    or_option = f", or set {option} to read all files as one text" if option else ""
    splits = _by_split(folder, found, or_option) if by_name else {}
    if by_name:
        _refuse_unread(folder, unread, splits, or_option)
    is_named = bool(splits)
    named = {path for paths in splits.values() for path in paths} if is_named else set(found)
    if unnamed := [_name(path, folder) for path in found if path not in named]:
        skipped[_UNNAMED] = unnamed
    splits, repeated = _without_copies(folder, splits or {"train": found})
    if repeated:
        skipped[_COPY] = repeated
    ordered = {split: tuple(splits[split]) for split in SPLITS if split in splits}
    names = {split: [_name(path, folder) for path in paths] for split, paths in ordered.items()}
    return FolderFiles(ordered, Listing(names, dict(sorted(skipped.items())), is_named))


def _walk(folder: Path, suffixes: Sequence[str], by_name: bool) -> Iterator[tuple[Path, str | None]]:
    """Every file, and every folder that is not entered, in the order of relative paths, and why it is not read."""

    def unreadable(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}).")

    found: list[tuple[Path, str | None]] = []
    for parent, folders, names in os.walk(folder, onerror=unreadable):
        found += [(Path(parent, name), _HIDDEN) for name in folders if name.startswith(".")]
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [(Path(parent, name), _LINKED) for name in folders if Path(parent, name).is_symlink()]
        found += [(Path(parent, name), _reason(name, suffixes, by_name)) for name in names]
    yield from sorted(found, key=lambda item: item[0].relative_to(folder).as_posix())


def _reason(name: str, suffixes: Sequence[str], by_name: bool) -> str | None:
    if name.startswith("."):
        return _HIDDEN
    suffix = os.path.splitext(name)[1].lower()
    if suffix in suffixes or (by_name and _is_named_for_split(name, suffix)):
        return None
    return _REASON_OF_ENDING.get(suffix, _OTHER)


def _is_named_for_split(name: str, suffix: str) -> bool:
    """Whether a file without an ending of its own tells its split: ``ptb.train``, ``TrainSet``."""
    try:
        return split_names.names_split(suffix) if suffix else split_names.split_of(PurePath(name)) is not None
    except UnclearName:
        return False


def _by_split(folder: Path, files: Sequence[Path], or_option: str) -> dict[str, list[Path]]:
    """The files that name a split, by split; empty where none does."""
    splits: dict[str, list[Path]] = {}
    unclear: dict[PurePath, str] = {}
    unnamed = []
    for path in files:
        relative = path.relative_to(folder)
        try:
            split = split_names.split_of(relative)
        except UnclearName as error:
            unclear[relative] = str(error)
            continue
        if split is None:
            unnamed.append(relative)
        else:
            splits.setdefault(split, []).append(path)
    unclear |= split_names.glued(unnamed)
    unclear |= split_names.either_way([path.relative_to(folder) for path in splits.get("val", ())])
    if unclear:
        shown = "; ".join(f"{printable(str(path))}: {why}" for path, why in list(unclear.items())[:MAX_NAMED])
        more = f"; … {len(unclear) - MAX_NAMED:,} more" if len(unclear) > MAX_NAMED else ""
        raise DataError(
            f"{folder}: names that leave open which split a file belongs to ({shown}{more}). Rename these files so "
            "that each names one of train, valid and test, set off by dots, dashes, digits or capitals, or move them "
            f"away{or_option}."
        )
    if splits and "train" not in splits:
        there = " and ".join(
            f"{NAMES[split]} ({some([_name(path, folder) for path in paths])})"
            for split, paths in splits.items()
        )
        raise DataError(
            f"{folder}: has files for {there} but none for train; name one train.txt, train.jsonl or "
            f"train.parquet, or give a single file as path{or_option}."
        )
    return splits


def _refuse_unread(
    folder: Path, unread: Mapping[PurePath, str], splits: Mapping[str, Sequence[Path]], or_option: str
) -> None:
    """A training or validation split that is there only in a form that is not read would be cut elsewhere."""
    for path, reason in unread.items():
        try:
            split = split_names.split_of(path)
        except UnclearName:
            continue
        if split in ("train", "val") and split not in splits:
            raise DataError(
                f"{folder}: {printable(str(path))} names the {NAMES[split]} split and cannot be read ({reason}), and "
                f"no other file is for it. Convert it, or move it away{or_option}."
            )


def _without_copies(
    folder: Path, splits: Mapping[str, Sequence[Path]]
) -> tuple[dict[str, list[Path]], list[str]]:
    """The files without those whose bytes an earlier one holds, and these by name.

    Raises:
        DataError: the two belong to different splits.
    """
    split_of = {path: split for split in SPLITS for path in splits.get(split, ())}
    found = copies(list(split_of))
    for path, original in found.items():
        if split_of[path] != split_of[original]:
            raise DataError(
                f"{folder}: {_name(path, folder)} ({NAMES[split_of[path]]}) holds the same bytes as "
                f"{_name(original, folder)} ({NAMES[split_of[original]]}), so that what is held out is not. Remove one "
                "of them."
            )
    kept = {split: [path for path in paths if path not in found] for split, paths in splits.items()}
    return kept, [f"{_name(path, folder)} as {_name(original, folder)}" for path, original in found.items()]


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() + ("/" if path.is_dir() else "")
