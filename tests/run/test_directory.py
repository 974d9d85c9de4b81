import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.run import checkpoint, status
from app.run.directory import RunDirectory, resolve_run
from app.run.errors import ConfigurationError, StorageError
from app.run.lock import RunLock


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    made = RunDirectory.open_new(tmp_path / "deep" / "run")
    made.config.write_text("a: 1\n")
    return made


def put(run: RunDirectory, name: str) -> Path:
    path = run.checkpoints / name
    path.write_bytes(b"content")
    checkpoint.sidecar_path(path).write_text(f"{'0' * 64}  {name}\n")
    return path


def test_default_directories_are_exclusive_and_named_by_time(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: RunDirectory.create_default(tmp_path / "runs", "gpt"), range(40)))
    assert len({run.path for run in made}) == 40
    for run in made:
        assert run.path.parent == tmp_path / "runs" / "gpt"
        assert re.fullmatch(r"\d{8}T\d{6}\.\d{3}Z-[0-9a-f]{4}", run.path.name)
        assert not run.is_run
        assert run.checkpoints.is_dir()


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("../../etc/x", "etc-x"),
        ("a b\n", "a-b"),
        ("..", "run"),
        ("", "run"),
        ("/abs", "abs"),
        ("v1.5", "v1.5"),
    ],
)
def test_run_names_stay_inside_the_root(tmp_path: Path, stem: str, name: str) -> None:
    made = RunDirectory.create_default(tmp_path / "runs", stem)
    assert made.path.parent == tmp_path / "runs" / name


def test_open_new_makes_parents_and_takes_an_empty_directory(tmp_path: Path) -> None:
    made = RunDirectory.open_new(tmp_path / "a" / "b")
    assert RunDirectory.open_new(made) == made
    assert sorted(os.listdir(made)) == ["checkpoints", "figures"]


@pytest.mark.parametrize("sign", ["config.yaml", "run.json", "checkpoints/best-000001.ckpt"])
def test_existing_run_is_refused(tmp_path: Path, sign: str) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / sign).write_text("x")
    with pytest.raises(ConfigurationError, match="already holds a run; continue it with --resume"):
        RunDirectory.open_new(tmp_path / "run")


def test_existing_run_in_use_names_the_holder(run: RunDirectory) -> None:
    with RunLock(run), pytest.raises(ConfigurationError, match=f"in use by process {os.getpid()} on host"):
        RunDirectory.open_new(run)


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigurationError, match="is a file; name a directory"):
        RunDirectory.open_new(tmp_path / "file")
    with pytest.raises(StorageError, match="Not a directory"):
        RunDirectory.open_new(tmp_path / "file" / "run")
    with pytest.raises(StorageError, match="cannot write"):
        RunDirectory.create_default(tmp_path / "file", "gpt")
    with pytest.raises(StorageError, match=r"bytes needed for the checkpoints, [\d,]+ bytes free"):
        RunDirectory.open_new(tmp_path / "run", required_bytes=1 << 60)


def test_read_only_place(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(mount)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        with pytest.raises(StorageError, match="Read-only file system"):
            RunDirectory.open_new(mount)
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_resolve_run(run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(run, "resume-000120.ckpt")
    assert resolve_run(run) == (run, None)
    assert resolve_run(path) == (run, path)
    monkeypatch.chdir(run.checkpoints)
    relative, found = resolve_run("resume-000120.ckpt")
    assert found is not None
    assert os.path.samefile(relative, run)
    for wrong, said in (
        (tmp_path, "not a run directory"),
        (tmp_path / "gone", "no such run directory or checkpoint file"),
        (run.config, "not in the checkpoints/"),
        (run.checkpoints / "resume-000130.ckpt", "no such checkpoint; there are resume-000120.ckpt"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            resolve_run(wrong)


def test_status_round_trip_and_damage(run: RunDirectory) -> None:
    assert status.read_status(run.status) is None
    status.write_status(run.status, "stopped", 40, 143, "SIGTERM")
    found = status.read_status(run.status)
    assert found is not None
    assert (found["state"], found["step"], found["exit_code"], found["reason"]) == (
        "stopped",
        40,
        143,
        "SIGTERM",
    )
    for damage in ("", "{", "[]", '{"state": "running"}', '{"state": 1, "step": 1}', "\x00\xff"):
        run.status.write_text(damage)
        assert status.read_status(run.status) is None
        assert status.true_state(run) == "unknown"
    with pytest.raises(ValueError, match="state is 'done'"):
        status.write_status(run.status, "done", 1)  # type: ignore[arg-type]


def test_true_state_knows_a_killed_run(run: RunDirectory) -> None:
    status.write_status(run.status, "running", 3)
    assert status.true_state(run) == "killed"
    with RunLock(run):
        assert status.true_state(run) == "running"
    status.write_status(run.status, "finished", 3, 0)
    assert status.true_state(run) == "finished"


def test_finished_needs_state_steps_and_a_checkpoint_of_that_step(run: RunDirectory) -> None:
    path = put(run, "resume-000200.ckpt")
    assert not status.finished(run, 200)
    status.write_status(run.status, "finished", 200, 0)
    assert status.finished(run, 200)
    assert status.finished(run, 100)
    assert not status.finished(run, 201)
    checkpoint.sidecar_path(path).unlink()
    assert not status.finished(run, 200)
    put(run, "resume-000200.ckpt")
    path.write_bytes(b"")
    assert not status.finished(run, 200)
    path.unlink()
    put(run, "resume-000190.ckpt")
    assert not status.finished(run, 200)
    status.write_status(run.status, "stopped", 200, 143)
    assert not status.finished(run, 190)
