"""A text that another process has read."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules import CharDataModule, TextDataModule, corpus, shared_text
from datamodules.base import TokenDataModule
from datamodules.corpus import Corpus
from datamodules.split_names import SPLITS

TEXT = "".join(f"line {number} of a text: äöü\n" for number in range(400))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    return file


def taken(data: TokenDataModule) -> Corpus:
    """The text of a data module as another process has it, which reads nothing."""
    shared = data.share_text()
    assert shared is not None
    file, lengths = shared
    other = type(data)(path="nowhere", block_size=data.block_size, batch_size=data.batch_size)
    other.take_text(os.dup(file.fileno()), lengths)
    return other.check_source()


def assert_same(found: Corpus, expected: Corpus) -> None:
    for split in SPLITS:
        ours, theirs = getattr(found, split), getattr(expected, split)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
        assert ours.flags.writeable == theirs.flags.writeable
        assert type(ours) is np.ndarray
    assert found.tokenizer.hash == expected.tokenizer.hash
    assert found.tokenizer.decode(found.val[:20]) == expected.tokenizer.decode(expected.val[:20])
    for name in ("fingerprint", "summary", "files", "facts"):
        assert getattr(found, name) == getattr(expected, name)


def test_characters_are_shared(text: Path) -> None:
    data = CharDataModule(path=str(text), block_size=16, batch_size=2, test_fraction=0.05)
    found = taken(data)
    assert_same(found, data.check_source())
    assert found.train.ctypes.data % found.train.dtype.itemsize == 0
    found.train[0] += 1  # a page of its own: the other process sees nothing of it
    assert found.train[0] != data.check_source().train[0]


@pytest.mark.parametrize("kind", ["bpe", "word", "char", "byte"])
def test_prepared_tokens_are_mapped_where_they_lie(text: Path, tmp_path: Path, kind: Any) -> None:
    data = TextDataModule(
        path=str(text), tokenizer=kind, block_size=16, batch_size=2, cache_dir=str(tmp_path / "prepared")
    )
    shared = data.share_text()
    assert shared is not None
    found = taken(data)
    assert_same(found, data.check_source())
    mapped: Any = found.train
    while not isinstance(mapped, np.memmap):
        mapped = mapped.base
    assert Path(str(mapped.filename)).parent.parent == tmp_path / "prepared"


def test_what_is_mapped_without_a_name_is_read_by_each(text: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(corpus, "MAX_BYTES_IN_MEMORY", 10)
    data = CharDataModule(path=str(text), block_size=16, batch_size=2, data_dir=str(tmp_path / "data"))
    assert data.share_text() is None
    assert shared_text.share(data.check_source()) is None


def test_where_there_is_no_room_each_reads_the_text(text: Path, monkeypatch: Any) -> None:
    def full() -> Any:
        raise OSError(28, "No space left on device")

    data = CharDataModule(path=str(text), block_size=16, batch_size=2)
    monkeypatch.setattr(shared_text, "_without_name", full)
    assert data.share_text() is None


def test_a_file_that_only_has_no_name_is_shared_too(text: Path, monkeypatch: Any) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    data = CharDataModule(path=str(text), block_size=16, batch_size=2)
    assert_same(taken(data), data.check_source())
