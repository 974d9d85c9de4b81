"""Durable means durable: whatever a crash loses of what was not synced, what was said to be done is there.

Every test records the system calls of real writes, replays each crash that they leave room for (see
:mod:`tests.support.crashes`) and then does so again with one of the syncs left out, which must show.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.run import atomic, checkpoint, manifest, status
from app.run.directory import RunDirectory
from app.run.partial_results import PartialResults
from tests.support.crashes import Survival, require
from tests.support.recorded_calls import Recorder


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    (tmp_path / "disk").mkdir()
    return Recorder(tmp_path / "disk")


# ---- checkpoints


def write(recorder: Recorder, folder: Path, step: int, content: str) -> None:
    path = folder / checkpoint.resume_name(step)
    recorder.mark(begun=path.name)
    digest = checkpoint.write({"step": step, "content": content, "w": torch.full((50,), step)}, path)
    recorder.mark(saved=(path.name, digest), begun="")


def write_checkpoints(recorder: Recorder) -> None:
    """New ones, one that replaces its like, and the removal of what is superfluous."""
    folder = recorder.root / "checkpoints"
    atomic.make_directory(folder)
    write(recorder, folder, 10, "")
    write(recorder, folder, 20, "owes its validation")
    write(recorder, folder, 20, "validated")
    write(recorder, folder, 30, "")
    removed = checkpoint.prune(folder, "resume", keep=2)
    recorder.mark(removed=tuple(path.name for path in removed))


def check_checkpoints(recorder: Recorder) -> Callable[[Path, dict[str, Any]], None]:
    history = [event.value for event in recorder.events if event.kind == "mark" and event.target == "saved"]

    def check(disk: Path, marks: dict[str, Any]) -> None:
        folder = disk / "checkpoints"
        skipped: list[tuple[Path, str]] = []
        newest = checkpoint.newest_verified(folder, skipped)
        require(not skipped, f"a torn one is in the way: {skipped}")
        listed = [path for _, path in checkpoint.list_checkpoints(folder)]
        require(all(checkpoint._matches(path) for path in listed), "a torn one is there")
        for name in marks.get("removed", ()):
            require(not (folder / name).exists(), f"{name} has come back")
        if "saved" not in marks:
            return
        require(newest is not None, "none is left")
        assert newest is not None
        found = (newest.name, hashlib.sha256(newest.read_bytes()).hexdigest())
        require(found in history, f"{newest.name} is none that was written")
        require(
            history.index(found) >= history.index(marks["saved"]), f"{marks['saved']} was said to be saved"
        )
        if not marks["begun"]:
            lines = checkpoint.sidecar_path(newest).read_text().splitlines()
            require(len(lines) == 1, "the sidecar accepts an older content")
        RunDirectory(disk).sweep()
        require(checkpoint.newest_verified(folder) == newest, "the next start removes it")

    return check


def test_checkpoints_survive_every_crash_and_need_every_sync(recorder: Recorder) -> None:
    with recorder:
        write_checkpoints(recorder)
    survival = Survival(recorder, check_checkpoints(recorder))
    assert survival.is_certain()
    assert survival.superfluous() == []


def without_sync(*endings: str) -> Callable[[pytest.MonkeyPatch], None]:
    """No file or folder whose path ends so is synced."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        sync = os.fsync

        def forgetful(descriptor: int) -> None:
            if not os.readlink(f"/proc/self/fd/{descriptor}").endswith(endings):
                sync(descriptor)

        monkeypatch.setattr(os, "fsync", forgetful)

    return patch


def sidecar_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint gets its name before its sidecar is there."""
    later: list[tuple[Path, str]] = []
    replace = os.replace

    def replace_and_catch_up(source: Path, target: Path) -> None:
        replace(source, target)
        while Path(target).suffix == ".ckpt" and later:
            atomic.write_text(*later.pop())

    monkeypatch.setattr(checkpoint, "write_text", lambda path, text: later.append((path, text)))
    monkeypatch.setattr(os, "replace", replace_and_catch_up)


def unstaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint is written in its place."""
    monkeypatch.setattr(checkpoint, "staged", lambda path: contextlib.nullcontext(Path(path)))


def sidecar_removed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def remove(path: Path) -> None:
        checkpoint.sidecar_path(path).unlink()
        path.unlink()
        atomic.sync_directory(path.parent)

    monkeypatch.setattr(checkpoint, "remove", remove)


@pytest.mark.parametrize(
    ("break_it", "lost"),
    [
        (without_sync(f".ckpt.{os.getpid()}.tmp"), "a torn one"),
        (without_sync(f".sha256.{os.getpid()}.tmp"), "a torn one"),
        (without_sync("checkpoints"), "said to be saved"),
        (without_sync("disk"), "none is left"),
        (sidecar_last, "a torn one"),
        (unstaged, "a torn one"),
        (sidecar_removed_first, "a torn one"),
    ],
    ids=["content", "sidecar", "names", "folder", "sidecar last", "unstaged", "sidecar removed first"],
)
def test_each_way_to_write_carelessly_is_found(
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    break_it: Callable[[pytest.MonkeyPatch], None],
    lost: str,
) -> None:
    with recorder:
        break_it(monkeypatch)
        write_checkpoints(recorder)
        monkeypatch.undo()
    losses = Survival(recorder, check_checkpoints(recorder)).losses()
    assert any(lost in loss for loss in losses)


# ---- everything else that a run writes


def check_versions(recorder: Recorder) -> Callable[[Path, dict[str, Any]], None]:
    """Files are old or new, and what was said to be written is there or a newer one is.

    A mark is a path with its content, None for a folder.
    """
    versions: dict[str, list[bytes | None]] = {}
    for event in recorder.events:
        if event.kind == "mark":
            versions.setdefault(event.target, []).append(event.value)

    def check(disk: Path, marks: dict[str, Any]) -> None:
        for path, written in versions.items():
            if written == [None]:
                require(path not in marks or (disk / path).is_dir(), f"{path} is gone")
                continue
            found = (disk / path).read_bytes() if (disk / path).exists() else None
            require(found in (None, *written), f"{path} is torn")
            if path in marks:
                require(found is not None, f"{path} is gone")
                require(written.index(found) >= written.index(marks[path]), f"{path} is an older one")

    return check


def say(recorder: Recorder, *paths: Path) -> None:
    """These are said to be written."""
    recorder.mark(**{str(path.relative_to(recorder.root)): path.read_bytes() for path in paths})


def begin_and_end(recorder: Recorder) -> None:
    """The files of a launch, and of one that follows it."""
    run = RunDirectory.open_new(recorder.root / "deep" / "run")
    recorder.mark(**{"deep/run/figures": None, "deep/run/checkpoints": None})
    for number in (1, 2):
        manifest.record_launch(run, {"number": number, "source_diff": f"+{number}\n"})
        say(recorder, run.manifest, run.path / ("source.diff" if number == 1 else "source-2.diff"))
    atomic.write_text(run.config, "seed: 1\n")
    say(recorder, run.config)
    status.write_status(run.status, "running", 1)
    say(recorder, run.status)
    status.write_status(run.status, "finished", 2, 0)
    say(recorder, run.status)


def draw(recorder: Recorder) -> None:
    """A picture that somebody else's code writes, in a folder of results."""
    folder = recorder.root / "results" / "gamma"
    atomic.make_directory(folder)
    for content in (b"old picture", b"new picture"):
        with atomic.staged(folder / "gamma.png") as temporary:
            temporary.write_bytes(content)
            atomic.publish(temporary, folder / "gamma.png")
        say(recorder, folder / "gamma.png")


def take_the_default_directory(recorder: Recorder) -> None:
    run = RunDirectory.create_default(recorder.root / "runs", "gpt")
    recorder.mark(**{str(run.checkpoints.relative_to(recorder.root)): None})
    status.write_status(run.status, "starting", 0)
    say(recorder, run.status)


def keep_stages(recorder: Recorder) -> None:
    kept = PartialResults(recorder.root / "stages.json", {"seed": 1})
    for name in ("basis", "full"):
        kept.keep(name, [1.5])
        say(recorder, kept.path)


@pytest.mark.parametrize("scenario", [begin_and_end, draw, take_the_default_directory, keep_stages])
def test_files_survive_every_crash_and_need_every_sync(
    recorder: Recorder, scenario: Callable[[Recorder], None]
) -> None:
    with recorder:
        scenario(recorder)
    versions = check_versions(recorder)

    def check(disk: Path, marks: dict[str, Any]) -> None:
        versions(disk, marks)
        manifest_file = disk / "deep" / "run" / "run.json"
        for number in range(
            1, manifest_file.read_text().count('"number"') + 1 if manifest_file.exists() else 1
        ):
            diff = manifest_file.with_name("source.diff" if number == 1 else f"source-{number}.diff")
            require(diff.exists(), "the manifest is there and the source that it speaks of is not")

    survival = Survival(recorder, check)
    assert survival.is_certain()
    assert survival.superfluous() == []


def test_a_call_that_is_not_known_is_found_out(recorder: Recorder) -> None:
    with recorder:
        (recorder.root / "file").write_bytes(b"x")
        os.link(recorder.root / "file", recorder.root / "other")
        with pytest.raises(AssertionError, match="changed by an unknown call"):
            recorder.mark(any=1)
