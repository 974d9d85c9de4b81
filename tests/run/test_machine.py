"""What is said of a machine, and that looking leaves nothing behind."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.run import machine
from app.run.machine import Check


def test_a_folder_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, level in ((10 << 30, "ok"), (1 << 30, "warn"), (1 << 20, "fail")):
        monkeypatch.setattr(machine, "free_bytes", lambda path, free=free: free)
        assert machine.storage("runs folder", tmp_path).level == level
    check = machine.storage("runs folder", tmp_path / "a" / "b")
    assert f"not made yet, in {tmp_path}" in check.found
    assert check.remedy
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "runs"):
        check = machine.storage("runs folder", folder)
        assert (check.level, check.name) == ("fail", "runs folder")
        assert "is a file" in check.found
    monkeypatch.setattr(
        machine.tempfile, "mkdtemp", lambda **_: (_ for _ in ()).throw(PermissionError(13, "denied"))
    )
    assert machine.storage("runs folder", tmp_path) == Check(
        "runs folder",
        "fail",
        f"{tmp_path}: cannot be written (denied)",
        "make it writable, or use another folder",
    )


def test_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.locking(tmp_path).level == "ok"

    class Open:
        def __init__(self, directory: Path): ...
        def __enter__(self) -> None: ...
        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(machine, "RunLock", Open)
    assert machine.locking(tmp_path).level == "fail"
    assert not list(tmp_path.iterdir())


def test_clocks(tmp_path: Path) -> None:
    assert machine.clock(tmp_path).level == "ok"
    behind = machine.clock(tmp_path, lambda: time.time() - 60)
    assert behind.level == "warn"
    assert "60 s behind" in behind.found
    assert "ahead of" in machine.clock(tmp_path, lambda: time.time() + 60).found
    assert "before this program" in machine.clock(tmp_path, lambda: 0.0).found


def test_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.sys, "platform", "linux")
    missing = machine.shared_memory(tmp_path / "shm")
    assert missing.level == "warn"
    assert "--shm-size" in missing.remedy
    for free, level in ((64 << 20, "warn"), (1 << 30, "ok")):
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        assert machine.shared_memory(tmp_path).level == level


def test_a_container_grants_less_than_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_cores", lambda: 8)
    monkeypatch.setattr(os, "getloadavg", lambda: (1.0, 1.0, 1.0))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    check = machine.processors(tmp_path / "cpu.max")
    assert (check.level, check.remedy) == ("warn", "set OMP_NUM_THREADS=2: more threads wait for each other")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert machine.processors(tmp_path / "cpu.max").level == "ok"
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.processors(tmp_path / "cpu.max").found == "8 cores for this process, load 1.0"
    monkeypatch.setattr(os, "getloadavg", lambda: (9.0, 1.0, 1.0))
    assert machine.processors(tmp_path / "none").level == "warn"


def test_only_listed_variables_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*machine.EFFECTS, *machine.ENVIRONMENT]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    assert list(machine.environment()) == []
    for name, value, level in (
        ("OMP_NUM_THREADS", "2", "ok"),
        ("OMP_NUM_THREADS", "all", "warn"),
        ("TRITON_INTERPRET", "1", "warn"),
        ("TRITON_INTERPRET", "0", "ok"),
        ("CUDA_VISIBLE_DEVICES", "", "warn"),
        ("CUDA_VISIBLE_DEVICES", "1", "ok"),
        ("RANK", "0", "warn"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            (check,) = machine.environment()
        assert (check.name, check.level, bool(check.remedy)) == (f"${name}", level, level == "warn"), name
        assert repr(value) in check.found


def test_text_output(monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding, level in (("utf-8", "ok"), ("UTF8", "ok"), ("ascii", "warn"), (None, "warn")):
        monkeypatch.setattr(machine.sys, "stdout", SimpleNamespace(encoding=encoding))
        assert machine.text_output().level == level
