"""Places that cannot be written to."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.conftest import Reference
from tests.support import faults, runs
from tests.support.application import Application

pytestmark = pytest.mark.process


def test_a_run_directory_below_a_file(application: Application, reference: Reference, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for run_dir, code in ((tmp_path / "file", 2), (tmp_path / "file" / "run", 5)):
        ended = application.run(
            "fit", "--config", reference.baseline_config, "--run_dir", run_dir, cwd=tmp_path
        )
        assert ended.code == code, ended
        assert str(run_dir) in ended.err
        assert ended.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_without_permission(application: Application, reference: Reference, tmp_path: Path) -> None:
    # Where the tests run as root, permissions stop nobody: then the operating system's answer is put in place.
    refuses = faults.replaced(
        "pathlib.Path.mkdir",
        "lambda path, *args, **kwargs: (_ for _ in ()).throw(PermissionError(13, 'Permission denied'))",
    )
    (tmp_path / "closed").mkdir(mode=0o555)
    ended = application.run(
        "fit", "--config", reference.baseline_config, "--run_dir", tmp_path / "closed" / "run", cwd=tmp_path,
        prelude=refuses if os.geteuid() == 0 else "",
    )  # fmt: skip
    assert ended.code == 5, ended
    assert "Permission denied; make the directory writable, or use another --run_dir" in ended.err
    assert not list((tmp_path / "closed").iterdir())


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"this user may not mount a file system: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


#: the application asks for 50 MB before a run; for a disk that fills up later on, for nothing
NO_DEMAND = faults.replaced("app.run.plan.REQUIRED_BYTES", "0")


def test_too_little_room_is_known_before_the_first_step(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        ended = application.run(
            "fit", "--config", reference.baseline_config, "--run_dir", disk / "run", cwd=tmp_path
        )
        assert ended.code == 5, ended
        assert "50,000,000 bytes needed" in ended.err
        assert "bytes free; free some space, or use a --run_dir on another disk" in ended.err
        assert not list(disk.iterdir())


def test_a_disk_that_fills_up(application: Application, reference: Reference, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "4m") as disk:
        run = disk / "run"
        words = ("fit", "--config", reference.baseline_config, "--run_dir", run, "--resume", "auto")
        # Between the first and the second checkpoint somebody else takes all the rest.
        fills = faults.at(
            "step", f"open({str(disk / 'other')!r}, 'wb', buffering=0).write(bytes(4 << 20))", 8
        )
        ended = application.run(*words, cwd=tmp_path, prelude=NO_DEMAND + fills)
        assert ended.code == 5, ended
        assert "Traceback" not in ended.err
        assert "No space left on device" in ended.err
        assert "free some space and continue with --resume" in ended.err
        assert runs.saved_steps(run) == [5]
        assert runs.last_checkpoint(run)["archlab"]["step"] == 5
        assert not [path for path in run.rglob("*") if path.name.endswith(".tmp")]
        (disk / "other").unlink()
        ended = application.run(*words, cwd=tmp_path, prelude=NO_DEMAND)
        assert ended.code == 0, ended
        assert "resumed  after step 5\n" in ended.out
        runs.assert_same_run(run, reference.baseline)


def test_a_full_temporary_directory_does_no_harm(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        with contextlib.suppress(OSError), (disk / "full").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        ended = application.run(
            "fit", "--config", reference.baseline_config, "--run_dir", tmp_path / "run", cwd=tmp_path,
            env={"TMPDIR": str(disk)},
        )  # fmt: skip
        assert ended.code == 0, ended
        runs.assert_same_run(tmp_path / "run", reference.baseline)
