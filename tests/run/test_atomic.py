import errno
import json
import os
import subprocess
from pathlib import Path

import pytest

from app.run import atomic
from app.run.errors import ExitCode, StorageError


def test_write_json_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "status.json"
    atomic.write_json(target, {"state": "running", "läuft": 1})
    atomic.write_json(target, {"state": "finished"})
    assert json.loads(target.read_text()) == {"state": "finished"}
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "status.json"
    atomic.write_text(target, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"3 bytes needed, [\d,]+ bytes free") as caught:
        atomic.write_text(target, "new")
    assert caught.value.exit_code == ExitCode.STORAGE
    assert str(target) in str(caught.value)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_missing_parent_and_parent_that_is_a_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="gone"):
        atomic.write_text(tmp_path / "gone" / "status.json", "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Not a directory"):
        atomic.write_text(tmp_path / "file" / "status.json", "x")


def test_sweep_removes_temporaries_of_any_process_and_nothing_else(tmp_path: Path) -> None:
    kept = ["config.yaml", ".hidden", "notes.tmp", ".x.tmp"]
    for name in [*kept, ".run.json.1.tmp", f".resume-000010.ckpt.{os.getpid()}.tmp"]:
        (tmp_path / name).write_text("x")
    (tmp_path / ".lock-aa.77.tmp").mkdir()
    (tmp_path / ".lock-aa.77.tmp" / "owner.json").write_text("{}")
    removed = atomic.sweep_temporaries(tmp_path)
    assert len(removed) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    assert atomic.sweep_temporaries(tmp_path / "gone") == []


def test_read_only_file_system(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", str(mount)], capture_output=True
    ).returncode:
        pytest.skip("needs the right to mount")
    try:
        with pytest.raises(StorageError, match="Read-only file system; make the directory writable"):
            atomic.write_text(mount / "status.json", "x")
    finally:
        subprocess.run(["umount", str(mount)], check=True)
