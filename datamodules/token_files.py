"""Prepared texts on disk: one memory-mapped file of tokens per split, the tokenizer and ``meta.json``.

A folder appears under its name only when everything in it is complete. Token files hold unsigned integers of
the smallest width that fits, little-endian, and nothing else.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from app.run.atomic import free_bytes, sync_directory, write_json
from app.run.bounded import read_json
from app.run.errors import DataError, StorageError
from datamodules import tokenizers
from datamodules.encoding import Encoded
from datamodules.file_hashes import FileHashes
from datamodules.tokenizers import Tokenizer

FORMAT = 1  # a higher one in meta.json was written by a later version and is prepared anew


@dataclass(frozen=True)
class SplitFacts:
    """What was counted while a split was encoded.

    Attributes:
        n_tokens: in the token file.
        n_characters: of the text.
        n_bytes: of its UTF-8 form.
        n_words: what white space separates, and one ``<eos>`` per line end.
        n_token_bytes: bytes that the tokens stand for; ``n_bytes`` where the tokenizer loses nothing.
        sha256: hex digest of the text's UTF-8 bytes.
        tokens_sha256: hex digest of the token file.
        n_unknown, n_lost_spaces: see :class:`~datamodules.tokenizers.base.Losses`; None of a text that was prepared
            before they were counted.
    """

    n_tokens: int
    n_characters: int
    n_bytes: int
    n_words: int
    n_token_bytes: int
    sha256: str
    tokens_sha256: str
    n_unknown: int | None = None
    n_lost_spaces: int | None = None

    @property
    def is_lossy(self) -> bool:
        """Whether the text cannot be read off its tokens."""
        return bool(self.n_unknown or self.n_lost_spaces)


@dataclass(frozen=True)
class PreparedText:
    """A prepared text, mapped into memory.

    Attributes:
        folder: where it lies.
        tokenizer: made the tokens.
        tokens: by split, ``(n,)`` unsigned; a split that there is not is empty.
        facts: by split, of those that there are.
        license: of the data set, where it is known.
        files: lines that say what was read for which split and what was left out.
    """

    folder: Path
    tokenizer: Tokenizer
    tokens: Mapping[str, np.ndarray]
    facts: Mapping[str, SplitFacts]
    license: str | None
    files: tuple[str, ...] = ()


def key_of(values: Any) -> str:
    """SHA-256, hex, of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def load(folder: Path, hashes: FileHashes) -> PreparedText | None:
    """A prepared text; None where there is none, or not one of this format that is still as it was written.

    Args:
        folder: where it lies.
        hashes: remembers those of the token files, which would take long to read each time.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        meta = read_json(folder / "meta.json")
        if meta["format"] != FORMAT:
            return None
        facts = {split: SplitFacts(**values) for split, values in meta["splits"].items()}
        tokenizer = tokenizers.load(folder / "tokenizer.json")
        if tokenizer.hash != meta["tokenizer"] or tokenizer.dtype != meta["dtype"]:
            return None
        if not tokenizer.is_lossless and any(split.n_unknown is None for split in facts.values()):
            return None
        license_ = meta["license"]
        files = tuple(map(str, meta.get("files", ())))
        dtype = np.dtype(meta["dtype"]).newbyteorder("<")
        tokens = {}
        for split in ("train", "val", "test"):
            n_tokens = facts[split].n_tokens if split in facts else 0
            path = folder / f"{split}.bin"
            if n_tokens and path.stat().st_size != n_tokens * dtype.itemsize:
                return None
            if n_tokens and hashes.of([path]) != [facts[split].tokens_sha256]:
                return None
            # A view of the plain type: indexing a memmap costs several times as much.
            tokens[split] = (
                np.memmap(path, dtype=dtype, mode="r").view(np.ndarray) if n_tokens else np.empty(0, dtype)
            )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}).") from None
    except (ValueError, KeyError, TypeError, DataError):
        return None
    return PreparedText(folder, tokenizer, tokens, facts, license_, files)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A staging folder that takes the name ``folder`` when the block ends well, and vanishes otherwise.

    To be used under a lock: what killed processes have left of this folder is swept first.

    Raises:
        StorageError: it cannot be written.
    """
    staging = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        for orphan in folder.parent.glob(f".{folder.name}.*.tmp"):
            shutil.rmtree(orphan, ignore_errors=True)
        staging.mkdir(parents=True)
        yield staging
        sync_directory(staging)
        if folder.exists():  # damaged, or of another format
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(FileExistsError):  # without locks, somebody else has done the same work
            os.rename(staging, folder)
        sync_directory(folder.parent)
    except OSError as error:
        raise storage_error(error, folder) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


class TokenWriter:
    """Writes the token files of one staging folder, a part at a time.

    Args:
        folder: the staging folder.
        tokenizer: makes the tokens.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer):
        self._folder = folder
        self._tokenizer = tokenizer
        self._dtype = np.dtype(tokenizer.dtype).newbyteorder("<")
        self.facts: dict[str, SplitFacts] = {}

    @contextlib.contextmanager
    def split(self, name: str) -> Iterator["SplitWriter"]:
        """Opens the file of one split; its facts are there when the block has ended."""
        with (self._folder / f"{name}.bin").open("wb") as file:
            writer = SplitWriter(file, self._dtype, self._tokenizer)
            yield writer
            file.flush()
            os.fsync(file.fileno())
        self.facts[name] = writer.facts()

    def finish(self, meta: Mapping[str, Any]) -> None:
        """Writes the tokenizer and, last, ``meta.json``."""
        self._tokenizer.save(self._folder / "tokenizer.json")
        values = {
            "format": FORMAT,
            "dtype": np.dtype(self._tokenizer.dtype).name,
            "tokenizer": self._tokenizer.hash,
            "splits": {name: asdict(facts) for name, facts in self.facts.items()},
            **meta,
        }
        write_json(self._folder / "meta.json", values)


class SplitWriter:
    """Appends tokens and counts what they were made from."""

    def __init__(self, file: Any, dtype: np.dtype, tokenizer: Tokenizer):
        self._file = file
        self._dtype = dtype
        self._sizes = tokenizer.token_bytes
        self._vocab_size = tokenizer.vocab_size
        self._digest = hashlib.sha256()
        self._tokens_digest = hashlib.sha256()
        self._sums: Counter[str] = Counter()
        self.is_blank = True

    def text(self, text: str) -> None:
        """The text that the next ids are made from, in any parts."""
        self._digest.update(text.encode())

    def ids(self, part: Encoded) -> None:
        """Appends the ids of one part."""
        written = part.ids.astype(self._dtype, copy=False).data
        self._file.write(written)
        self._tokens_digest.update(written)
        counts = np.bincount(part.ids, minlength=self._vocab_size)
        self._sums += Counter(
            n_tokens=len(part.ids),
            n_characters=part.n_characters,
            n_bytes=part.n_bytes,
            n_words=part.n_words,
            n_token_bytes=int(counts @ self._sizes),
            n_unknown=part.losses.n_unknown,
            n_lost_spaces=part.losses.n_spaces,
        )
        self.is_blank = self.is_blank and (part.is_blank or not part.n_characters)

    def facts(self) -> SplitFacts:
        names = [field.name for field in fields(SplitFacts)]
        values: dict[str, Any] = {name: self._sums[name] for name in names}
        values |= {"sha256": self._digest.hexdigest(), "tokens_sha256": self._tokens_digest.hexdigest()}
        return SplitFacts(**values)


def storage_error(error: OSError, folder: Path) -> StorageError:
    """The message for token files that cannot be written."""
    free = free_bytes(folder)
    room = "" if free is None else f"; {free:,} bytes are free"
    return StorageError(
        f"{folder}: prepared tokens cannot be kept there ({error.strerror or error}{room}). "
        "Set cache_dir to a folder with more room."
    )
