"""Prepared once, whole or not at all."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.run.errors import DataError, StorageError
from datamodules import TextDataModule, preparation, token_files
from datamodules.file_hashes import FileHashes
from datamodules.preparation import cut
from datamodules.tokenizers import from_dict

WORDS = ["the", "quick", "brown", "fox", "naïve", "😀", ",", "jumps"]
TEXT = "".join(" ".join(random.Random(i).choices(WORDS, k=9)) + " .\n" for i in range(120))


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def make(path: Path, **args: Any) -> TextDataModule:
    values = {"tokenizer": "byte", "block_size": 16, "batch_size": 4, "cache_dir": str(path.parent / "cache")}
    return TextDataModule(str(path), **{**values, **args})


def prepared_folders(cache: Path) -> list[str]:
    visible = [path for path in cache.iterdir() if not path.name.startswith(".")]
    return sorted(path.name for path in visible if (path / "meta.json").exists())


def test_cuts_fall_on_line_ends() -> None:
    text = "one\ntwo\nthree\nfour\n"
    for size in range(1, len(text) + 1):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        parts: dict[str, str] = {"train": "", "val": "", "test": ""}
        for split, piece in cut(pieces, (5, 9, len(text))):
            parts[split] += piece
        assert "".join(parts.values()) == text
        if size == len(text):
            assert parts == {"train": "one\ntwo\n", "val": "three\n", "test": "four\n"}
    assert list(cut(["abcdef"], (3, 6, 6))) == [("train", "abc"), ("val", "def")]  # one long line
    assert list(cut(["ab\n", "cd\n"], (3, 6, 6))) == [("train", "ab\n"), ("val", "cd\n")]


@pytest.mark.parametrize("tokenizer", ["byte", "char", "word", "bpe"])
def test_tokens_are_those_of_the_text(text_file: Path, tokenizer: Any) -> None:
    data = make(
        text_file, tokenizer=tokenizer, test_fraction=0.2, max_vocab_size=300 if tokenizer == "bpe" else None
    )
    corpus = data.check_source()
    parts = [corpus.tokenizer.decode(tokens) for tokens in (corpus.train, corpus.val, corpus.test)]
    assert all(part.endswith("\n") for part in parts)
    if tokenizer == "word":
        assert "".join(parts).split() == TEXT.split()
    else:
        assert "".join(parts) == TEXT
    for split, part in zip(("train", "val", "test"), parts, strict=True):
        facts = corpus.facts[split]
        assert facts.n_words == len(part.split()) + part.count("\n")
        assert facts.n_bytes == len(
            part.replace(" \n", "\n").encode() if tokenizer == "word" else part.encode()
        )
    assert abs(corpus.facts["train"].n_characters / len(TEXT) - 0.7) < 0.02
    assert corpus.train.dtype.itemsize == 1 + (corpus.tokenizer.vocab_size > 256)
    assert data.bytes_per_token == corpus.facts["train"].n_bytes / len(corpus.train)


def test_files_on_disk(text_file: Path) -> None:
    make(text_file, tokenizer="bpe", max_vocab_size=300).check_source()
    (folder,) = [p for p in (text_file.parent / "cache").iterdir() if (p / "meta.json").exists()]
    assert sorted(path.name for path in folder.iterdir()) == [
        "meta.json",
        "tokenizer.json",
        "train.bin",
        "val.bin",
    ]
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["dtype"] == "uint16"
    assert meta["license"] is None
    tokens = np.fromfile(folder / "train.bin", dtype="<u2")
    tokenizer = from_dict(json.loads((folder / "tokenizer.json").read_text()))
    assert TEXT.startswith(tokenizer.decode(tokens))
    assert meta["tokenizer"] == tokenizer.hash


def test_the_second_time_nothing_is_made(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(text_file, tokenizer="bpe", max_vocab_size=300)
    first.check_source()
    monkeypatch.setattr(preparation.Preparation, "_prepare", None)
    again = make(text_file, tokenizer="bpe", max_vocab_size=300)
    assert again.fingerprint == first.fingerprint
    assert np.array_equal(again.check_source().train, first.check_source().train)
    moved = text_file.rename(text_file.with_name("moved.txt"))
    assert make(moved, tokenizer="bpe", max_vocab_size=300).fingerprint == first.fingerprint


def test_a_changed_text_is_noticed_and_prepared_again(
    text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = make(text_file).fingerprint
    status = text_file.stat()
    text_file.write_text(TEXT.replace("quick", "kciuq"), encoding="utf-8")
    os.utime(text_file, ns=(status.st_atime_ns, status.st_mtime_ns))  # neither size nor time tell
    after = make(text_file).fingerprint
    assert {key for key in before if before[key] != after[key]} == {
        "train_sha256",
        "val_sha256",
        "tokens_sha256",
    }
    assert "corpus.txt changed since it was prepared" in capsys.readouterr().err
    text_file.write_text(TEXT, encoding="utf-8")
    assert make(text_file).fingerprint == before
    assert len(prepared_folders(text_file.parent / "cache")) == 2


def test_what_decides_the_tokens_decides_the_folder(text_file: Path) -> None:
    for args in (
        {},
        {"val_fraction": 0.2},
        {"tokenizer": "char"},
        {"tokenizer": "word"},
        {"tokenizer": "word", "max_vocab_size": 5},
    ):
        make(text_file, **args).check_source()
    make(text_file, block_size=8, batch_size=2, num_workers=1).check_source()
    assert len(prepared_folders(text_file.parent / "cache")) == 5


def test_a_text_that_changes_while_it_is_read(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = preparation.encoded

    def edited(*args: Any) -> Any:
        text_file.write_text(TEXT + "more", encoding="utf-8")
        return encoded(*args)

    monkeypatch.setattr(preparation, "encoded", edited)
    with pytest.raises(DataError, match="changed while it was read"):
        make(text_file).check_source()
    assert prepared_folders(text_file.parent / "cache") == []


def test_a_text_that_changes_before_it_is_read(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = preparation.Preparation._prepare

    def edited(self: Any, progress: Any) -> Any:  # such as while it waited for another process
        text_file.write_text(TEXT + "more", encoding="utf-8")
        return prepare(self, progress)

    monkeypatch.setattr(preparation.Preparation, "_prepare", edited)
    with pytest.raises(DataError, match="changed while it was read"):
        make(text_file).check_source()
    assert prepared_folders(text_file.parent / "cache") == []


def test_what_is_learnt_from_a_changing_text_is_not_kept(
    text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = {"tokenizer": "bpe", "max_vocab_size": 300}
    train_bpe = preparation.train_bpe

    def edited(*args: Any) -> Any:
        text_file.write_text("another text altogether\n" * 50, encoding="utf-8")
        return train_bpe(*args)

    monkeypatch.setattr(preparation, "train_bpe", edited)
    with pytest.raises(DataError, match="changed while it was read"):
        make(text_file, **args).check_source()
    monkeypatch.undo()
    text_file.write_text(TEXT, encoding="utf-8")
    clean = make(text_file, **args, cache_dir=str(text_file.parent / "clean")).fingerprint
    assert make(text_file, **args).fingerprint == clean


def test_tokens_edited_together_with_their_hash_are_others(text_file: Path) -> None:
    before = make(text_file).fingerprint
    cache = text_file.parent / "cache"
    (name,) = prepared_folders(cache)
    tokens = bytearray((cache / name / "train.bin").read_bytes())
    tokens[5] ^= 1
    (cache / name / "train.bin").write_bytes(tokens)
    meta = json.loads((cache / name / "meta.json").read_text())
    meta["splits"]["train"]["tokens_sha256"] = hashlib.sha256(tokens).hexdigest()
    (cache / name / "meta.json").write_text(json.dumps(meta))
    after = make(text_file).fingerprint
    assert {key for key in before if before[key] != after[key]} == {"tokens_sha256"}


def test_two_requests_for_one_folder_do_not_disturb_each_other(
    text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The vocabulary's size decides nothing about bytes; yet it is another request, with a lock of its own.
    write = preparation.Preparation._write
    other = threading.Thread(target=lambda: make(text_file, max_vocab_size=300).check_source())
    n_written = 0

    def slow(self: Any, *args: Any) -> Any:
        nonlocal n_written
        n_written += 1
        if n_written == 1:
            other.start()
            other.join(0.3)
            assert other.is_alive()
        return write(self, *args)

    monkeypatch.setattr(preparation.Preparation, "_write", slow)
    make(text_file).check_source()
    other.join(20)
    assert not other.is_alive()
    assert n_written == 1
    assert len(prepared_folders(text_file.parent / "cache")) == 1


def test_what_is_prepared_can_be_read_where_nothing_can_be_written(
    text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make(text_file).fingerprint

    def refuse(*args: Any) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("app.run.atomic.os.replace", refuse)
    monkeypatch.setattr(preparation, "exclusive", refuse)
    assert make(text_file).fingerprint == before
    with pytest.raises(StorageError, match="Read-only file system"):
        make(text_file, tokenizer="char").check_source()


@pytest.mark.parametrize(
    "damage", ["cut", "gone", "meta", "format", "license", "swapped", "tokenizer", "learnt", "kind"]
)
def test_damaged_files_are_made_again(text_file: Path, damage: str) -> None:
    whole = make(text_file, tokenizer="char").check_source()
    ids = whole.train.copy()
    (name,) = prepared_folders(text_file.parent / "cache")
    folder = text_file.parent / "cache" / name
    if damage == "cut":
        (folder / "train.bin").write_bytes((folder / "train.bin").read_bytes()[:-1])
    elif damage == "gone":
        (folder / "val.bin").unlink()
    elif damage == "meta":
        (folder / "meta.json").write_text('{"format": 1')
    elif damage == "swapped":  # as long as before, with ids that no embedding has
        (folder / "train.bin").write_bytes(b"\xff" * (folder / "train.bin").stat().st_size)
    elif damage == "tokenizer":
        (folder / "tokenizer.json").write_text('{"kind": "byte"}')
    elif damage in ("learnt", "kind"):
        (learnt,) = (folder.parent / "tokenizers").iterdir()
        learnt.write_text("[" if damage == "learnt" else '{"kind": "byte"}')
    elif damage == "license":
        meta = json.loads((folder / "meta.json").read_text())
        del meta["license"]
        (folder / "meta.json").write_text(json.dumps(meta))
    else:
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps(meta | {"format": 99}))
    again = make(text_file, tokenizer="char").check_source()
    assert again.fingerprint == whole.fingerprint
    assert (again.train == ids).all()
    assert prepared_folders(text_file.parent / "cache") == [name]


PREPARE = (
    "import os, sys, time\n"
    "from pathlib import Path\n"
    "from datamodules import preparation, token_files\n"
    "from datamodules.splits import local_source\n"
    "prepare = preparation.Preparation._prepare\n"
    "def counted(self, progress):\n"
    "    print('prepares', flush=True)\n"
    "    time.sleep(0.5)\n"
    "    return prepare(self, progress)\n"
    "preparation.Preparation._prepare = counted\n"
    "{fault}\n"
    "source = local_source(Path(sys.argv[1]), 'text')\n"
    "wanted = preparation.Preparation(source, 'bpe', None, 300, 0.1, 0.0, Path(sys.argv[2]), 0)\n"
    "print(wanted.open().tokenizer.hash, flush=True)\n"
)


def start(text_file: Path, fault: str = "") -> subprocess.Popen[str]:
    words = [
        sys.executable,
        "-c",
        PREPARE.format(fault=fault),
        str(text_file),
        str(text_file.parent / "cache"),
    ]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def test_several_processes_do_the_work_once(text_file: Path) -> None:
    processes = [start(text_file) for _ in range(3)]
    outputs = [process.communicate()[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sum(output.count("prepares") for output in outputs) == 1
    assert len({output[-1] for output in outputs}) == 1


FAULTS = {
    "before a token": "preparation.TokenWriter.split = lambda *_: os.kill(os.getpid(), 9)",
    "among the tokens": "token_files.SplitWriter.ids = lambda *_, **__: os.kill(os.getpid(), 9)",
    "before the description": "preparation.TokenWriter.finish = lambda *_: os.kill(os.getpid(), 9)",
    "before the name": "token_files.sync_directory = lambda *_: os.kill(os.getpid(), 9)",
}


def test_a_kill_leaves_nothing_half_written(text_file: Path) -> None:
    cache = text_file.parent / "cache"
    processes = []
    for fault in FAULTS.values():
        processes.append(start(text_file, fault))
        time.sleep(0.01)
    assert [process.wait() for process in processes] == [-signal.SIGKILL] * len(FAULTS)
    for process in processes:
        assert process.stdout is not None
        process.stdout.close()
    assert prepared_folders(cache) == []
    make(text_file, tokenizer="bpe", max_vocab_size=300).check_source()
    assert len(prepared_folders(cache)) == 1
    assert not list(cache.glob(".*.tmp"))  # swept


def test_a_folder_that_cannot_be_written(text_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot be kept there .* Set cache_dir"):
        make(text_file, cache_dir=str(tmp_path / "file" / "cache")).check_source()


def test_a_full_disk(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(token_files.SplitWriter, "ids", full)
    with pytest.raises(StorageError, match=r"No space left on device; [\d,]+ bytes are free"):
        make(text_file).check_source()
    assert not [path for path in (text_file.parent / "cache").iterdir() if path.is_dir()]


def test_hashes_are_remembered_while_nothing_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    first = FileHashes(tmp_path / "files.json").of([path])
    second = FileHashes(tmp_path / "files.json")
    assert second.of([path]) == first  # read again: it was changed a moment ago
    assert not second.changed
    monkeypatch.setattr(FileHashes, "_SETTLED_NS", -1)
    FileHashes(tmp_path / "files.json").of([path])
    monkeypatch.setattr(FileHashes, "_hash", None)
    assert FileHashes(tmp_path / "files.json").of([path]) == first
    monkeypatch.undo()
    path.write_text("two")
    again = FileHashes(tmp_path / "files.json")
    assert again.of([path]) != first
    assert again.changed == [path]
    for damage in ("{", "[]", json.dumps({str(path): 5}), json.dumps({str(path): []})):
        (tmp_path / "files.json").write_text(damage)
        assert FileHashes(tmp_path / "files.json").of([path]) == again.of([path])
