"""Disks that take no more."""

import contextlib
import errno
import json
import os
import subprocess
from pathlib import Path

import pytest

from app.run import atomic, status, storage
from app.run.directory import RunDirectory
from app.run.errors import ConfigurationError, ExitCode, StorageError
from app.run.lock import RunLock


def test_the_last_word_fits_on_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("needs the right to mount")
    try:
        run = RunDirectory.open_new(disk / "run")
        with RunLock(run):
            status.write_status(run.status, "running", 3)
            with contextlib.suppress(OSError), (disk / "other").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(512))
            with pytest.raises(StorageError, match="No space left on device; 1 bytes needed, 0 bytes free"):
                atomic.write_text(run.metrics, "x")
            status.write_status(run.status, "failed", 4, 5, "no space " * 1000)
        found = status.read_status(run.status)
        assert found is not None
        assert (found["state"], found["step"], found["exit_code"]) == ("failed", 4, 5)
        assert found["reason"].startswith("no space no space")
        assert run.status.stat().st_size <= status.SMALLEST_BLOCK
        assert status.true_state(run) == "failed"
        assert sorted(os.listdir(run)) == ["checkpoints", "figures", "status.json"]
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("reason", ["", "short", "ä" * 700, "x" * 5000])
def test_a_status_in_the_place_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    path = tmp_path / "status.json"
    status.write_status(path, "running", 3, reason="a longer word than the one that comes")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    inode = path.stat().st_ino
    status.write_status(path, "failed", 4, 5, reason)
    found = json.loads(path.read_text())
    assert (found["state"], found["step"], found["exit_code"]) == ("failed", 4, 5)
    assert reason.startswith(found["reason"])
    assert bool(found["reason"]) == bool(reason)
    assert path.stat().st_ino == inode
    assert len(path.read_bytes()) <= status.SMALLEST_BLOCK
    path.unlink()
    with pytest.raises(StorageError, match="No space left on device"):  # the first cause
        status.write_status(path, "failed", 4, 5)


def test_a_run_that_could_not_even_say_so_is_not_running(tmp_path: Path) -> None:
    run = RunDirectory.open_new(tmp_path / "run")
    with RunLock(run):
        status.write_status(run.status, "running", 3)
    assert status.true_state(run) == "killed"


def test_errors_of_a_disk_from_anywhere(tmp_path: Path) -> None:
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO):
        found = storage.disk_error(OSError(code, os.strerror(code)), tmp_path)
        assert found is not None
        assert found.exit_code == ExitCode.STORAGE
        assert str(found).startswith(f"cannot write {tmp_path}: {os.strerror(code)}; ")
    named = storage.disk_error(OSError(errno.ENOSPC, "full", "/a/file"), tmp_path)
    assert str(named).startswith("cannot write /a/file: ")
    assert storage.disk_error(FileNotFoundError(errno.ENOENT, "gone"), tmp_path) is None
    assert storage.disk_error(BrokenPipeError(errno.EPIPE, "gone"), tmp_path) is None


def test_files_that_may_not_be_made(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=2", "tmpfs", disk]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        (disk / "first").touch()
        with pytest.raises(StorageError, match=r"bytes free, no further file possible \(inodes used up\)"):
            atomic.write_text(disk / "second", "x")
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_folders_for_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage.make_folder(tmp_path / "a" / "b", "--output").is_dir()
    assert storage.make_folder(tmp_path / "a" / "b", "--output").is_dir()
    (tmp_path / "file").write_text("")
    for name in ("file", "file/below", "x" * 256, "a\nb"):
        with pytest.raises(ConfigurationError, match=r"^--output "):
            storage.make_folder(tmp_path / name, "--output")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError, match="writable, or name another folder with --output"):
        storage.make_folder(tmp_path / "c", "--output")
