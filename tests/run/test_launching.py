"""What a launch does with the folder that it is given, decided before anything heavy is imported."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.run import arguments, checkpoint, launching, manifest, status
from app.run.directory import RunDirectory
from app.run.errors import ConfigurationError, IntegrityError
from app.run.lock import RunLock

Launch = Callable[..., launching.Plan]


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    """Plans a ``fit`` in a folder with ``new.yaml``; to be closed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new.yaml").write_text("seed: 2\n")

    def planned(*words: Any) -> launching.Plan:
        return launching.make(arguments.read([str(word) for word in words]))

    return planned


@pytest.fixture
def dead(tmp_path: Path) -> RunDirectory:
    """A run whose launch has failed before its first checkpoint."""
    made = RunDirectory.open_new(tmp_path / "run")
    made.config.write_text("seed: 1\n")
    manifest.record_launch(made, {"resumed_from": None, "init_from": None})
    made.metrics.write_text("step,train/loss\n1,5.0\n")
    status.write_status(made.status, "failed", 1, 1, "RuntimeError: boom")
    return made


def put(run: RunDirectory, name: str, content: bytes = b"content") -> Path:
    path = run.checkpoints / name
    path.write_bytes(content)
    checkpoint.sidecar_path(path).write_text(f"{_sha256(b'content')}  {name}\n")
    return path


def _sha256(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("words", [(), ("--resume", "auto")])
def test_a_run_without_a_checkpoint_starts_again_as_it_is_told_now(
    launch: Launch, dead: RunDirectory, words: tuple[str, ...]
) -> None:
    before = dead.metrics.read_text()
    made = launch("--config", "new.yaml", "--run_dir", dead, *words)
    try:
        assert [str(file.path) for file in made.files] == ["new.yaml"], "nothing of the old configuration"
        assert (made.directory, made.checkpoint, made.weights) == (dead, None, None)
        assert made.replaces == {"state": "failed", "step": 1, "reason": "RuntimeError: boom"}
        assert made.notes == [
            f"{dead} holds no checkpoint yet; it starts again from step 0",
            "the launch before this one failed: RuntimeError: boom",
        ]
        assert dead.metrics.read_text() == before, "it may still be refused"
        with pytest.raises(ConfigurationError, match=f"in use by process {os.getpid()}"):
            launch("--config", "new.yaml", "--run_dir", dead, *words)
    finally:
        made.close()
    assert dead.metrics.read_text() == before


@pytest.mark.parametrize("words", [("--resume", "run"), ("--resume", "auto", "--run_dir", "run")])
def test_told_nothing_it_starts_again_as_before(
    launch: Launch, dead: RunDirectory, words: tuple[str, ...]
) -> None:
    made = launch(*words)
    made.close()
    assert [str(file.path) for file in made.files] == ["run/config.yaml"]
    assert made.replaces is not None


def test_a_killed_launch_is_named(launch: Launch, dead: RunDirectory) -> None:
    status.write_status(dead.status, "running", 0)
    made = launch("--config", "new.yaml", "--run_dir", dead)
    made.close()
    assert made.replaces == {"state": "killed", "step": 0, "reason": ""}
    assert made.notes[-1] == "the launch before this one was killed"


def test_a_launch_that_was_killed_while_it_was_recorded(launch: Launch, dead: RunDirectory) -> None:
    dead.config.unlink()
    dead.manifest.unlink()
    made = launch("--config", "new.yaml", "--run_dir", dead)
    assert made.replaces is None, "no run was begun"
    made.close()
    assert sorted(os.listdir(dead)) == ["checkpoints", "figures"], "and again none was"


def test_with_a_checkpoint_it_wants_to_be_resumed(launch: Launch, dead: RunDirectory) -> None:
    put(dead, "resume-000010.ckpt", b"damaged")
    with pytest.raises(ConfigurationError, match="already holds a run; continue it with --resume"):
        launch("--config", "new.yaml", "--run_dir", "run")
    with pytest.raises(IntegrityError, match="none of its 1 checkpoints is whole"):
        launch("--resume", "run")


def test_before_the_first_one_is_due_the_best_one_is_gone_on_from(launch: Launch, dead: RunDirectory) -> None:
    best = put(dead, "best-000010.ckpt")
    with pytest.raises(ConfigurationError, match="already holds a run"):
        launch("--config", "new.yaml", "--run_dir", dead)
    made = launch("--run_dir", dead, "--resume", "auto")
    made.close()
    assert (made.checkpoint, made.replaces) == (best, None)
    assert launching.weights_of(str(dead), "last") == best
    put(dead, "best-000010.ckpt", b"damaged")
    with pytest.raises(IntegrityError, match="none of its 1 checkpoints is whole"):
        launch("--resume", "run")


def test_a_checkpoint_that_somebody_else_saves_in_between(
    launch: Launch, dead: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire = RunLock.acquire

    def late(self: RunLock) -> None:
        put(dead, "resume-000010.ckpt")
        acquire(self)

    monkeypatch.setattr(RunLock, "acquire", late)
    with pytest.raises(ConfigurationError, match="already holds a run"):
        launch("--config", "new.yaml", "--run_dir", dead)
    assert dead.metrics.exists()
    assert not (dead.path / "lock").exists()


@pytest.mark.parametrize("words", [("--config", "new.yaml", "--run_dir", "run"), ("--resume", "run")])
@pytest.mark.parametrize("sign", ["finished", "summary", "resumed"])
def test_a_run_that_has_lost_its_checkpoints_keeps_its_figures(
    launch: Launch, dead: RunDirectory, words: tuple[str, ...], sign: str
) -> None:
    if sign == "finished":
        status.write_status(dead.status, "finished", 20, 0)
    elif sign == "summary":
        dead.summary.write_text("{}")
    else:
        manifest.record_launch(dead, {"resumed_from": "resume-000010.ckpt"})
    with pytest.raises(
        ConfigurationError, match="its checkpoints are gone, and to start again would lose the figures"
    ):
        launch(*words)
    assert dead.metrics.exists()


def test_the_weights_that_a_run_began_with_the_last_time(
    launch: Launch, dead: RunDirectory, tmp_path: Path
) -> None:
    for name in ("first", "second"):
        (tmp_path / f"{name}.ckpt").write_text("")
        manifest.record_launch(dead, {"resumed_from": None, "init_from": str(tmp_path / f"{name}.ckpt")})
    made = launch("--resume", "run")
    made.close()
    assert made.weights == tmp_path / "second.ckpt"
    manifest.record_launch(dead, {"resumed_from": None, "init_from": None})
    made = launch("--resume", "run")
    made.close()
    assert made.weights is None


def test_a_folder_that_cannot_be_a_run(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.rglob("*"))
    for name in ("file", "file/run", "loop", "loop/run", "/", ".", str(tmp_path)):
        for words in ((), ("--resume", "auto")):
            with pytest.raises(ConfigurationError, match=r"^--run_dir "):
                launch("--config", "new.yaml", "--run_dir", name, *words)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_is_resumed_from_inside(
    launch: Launch, dead: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(dead)
    for words in (("--resume", "."), ("--run_dir", ".", "--resume", "auto")):
        launch(*words).close()
    assert json.loads(dead.manifest.read_text())["launches"]
