"""Data that was said to be prepared or downloaded is there, whole, after any crash."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.run import atomic
from app.run.atomic import make_directory, sync_directory
from datamodules import TextDataModule, token_files
from datamodules.download import Download
from datamodules.file_hashes import FileHashes
from tests.support.crashes import Survival, require
from tests.support.recorded_calls import Recorder

TEXT = "one of the lines of a short text\n" * 40


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    (tmp_path / "disk").mkdir()
    (tmp_path / "text.txt").write_text(TEXT)
    return Recorder(tmp_path / "disk")


def prepare(recorder: Recorder, text: Path) -> Survival:
    with recorder:
        cache = recorder.root / "deep" / "cache"
        data = TextDataModule(str(text), tokenizer="char", block_size=4, cache_dir=str(cache))
        recorder.mark(prepared=data.tokenizer.hash)
    (folder,) = cache.glob("*-char-*/")
    wanted = np.fromfile(folder / "train.bin", np.uint8)

    def check(disk: Path, marks: dict[str, Any]) -> None:
        cache = disk / "deep" / "cache"
        found = token_files.load(cache / folder.name, FileHashes(cache / "files.json"))
        require(found is not None or not (cache / folder.name).exists(), "a torn one has its name")
        require(found is not None or "prepared" not in marks, "it is gone")
        if found is not None:
            require(np.array_equal(found.tokens["train"], wanted), "its tokens are others")
            require(found.tokenizer.hash == data.tokenizer.hash, "its tokenizer is another one")

    return Survival(recorder, check)


def test_a_prepared_text(recorder: Recorder, tmp_path: Path) -> None:
    survival = prepare(recorder, tmp_path / "text.txt")
    assert survival.is_certain()
    # The index of hashes is only remembered; the names in the staging folder are synced more than once.
    needed = {event.path for event in survival.events if event.kind == "sync"} - set(survival.superfluous())
    assert {"train.bin", "val.bin"} <= {Path(path).name for path in needed}
    assert {".", "deep"} <= needed
    assert any(".meta.json" in path for path in needed)
    assert any(".tokenizer.json" in path for path in needed)


def test_names_in_the_staging_folder_are_made_durable_before_it_gets_its_own(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(path: Path) -> None:
        if path.suffix != ".tmp":
            sync_directory(path)

    for module in (atomic, token_files):
        monkeypatch.setattr(module, "sync_directory", forgetful)
    survival = prepare(recorder, tmp_path / "text.txt")
    monkeypatch.undo()
    assert any("a torn one has its name" in loss for loss in survival.losses())


def fetch(recorder: Recorder, text: Path) -> Survival:
    content = TEXT.encode()
    download = Download(text.as_uri(), "text.txt", len(content), hashlib.sha256(content).hexdigest())
    with recorder:
        recorder.mark(fetched=download.fetch(recorder.root / "deep" / "data").name)

    def check(disk: Path, marks: dict[str, Any]) -> None:
        target = disk / "deep" / "data" / "text.txt"
        require(target.exists() or "fetched" not in marks, "it is gone")
        require(not target.exists() or target.read_bytes() == content, "a torn one has its name")
        assert download.fetch(target.parent).read_bytes() == content  # whatever is left of the transfer

    return Survival(recorder, check)


def test_a_download(recorder: Recorder, tmp_path: Path) -> None:
    survival = fetch(recorder, tmp_path / "text.txt")
    assert survival.is_certain()
    # After the transfer, and when it gets its name.
    assert survival.superfluous() == ["deep/data/.text.txt.part"] * 2


def test_a_download_whose_last_byte_had_come_before_a_kill(recorder: Recorder, tmp_path: Path) -> None:
    """Nothing is left to transfer, but nobody has synced it yet."""
    with recorder:
        make_directory(recorder.root / "deep" / "data")
        (recorder.root / "deep" / "data" / ".text.txt.part").write_text(TEXT)
    survival = fetch(recorder, tmp_path / "text.txt")
    assert survival.is_certain()
    assert survival.superfluous() == []
