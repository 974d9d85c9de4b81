import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.run import checkpoint, status
from app.run.directory import RunDirectory, resolve_run
from app.run.errors import ConfigurationError, StorageError
from app.run.leftovers import clear
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


@pytest.mark.parametrize("name", ["best-000001.ckpt", "resume-000001.ckpt"])
def test_a_run_with_a_checkpoint_is_refused(run: RunDirectory, name: str) -> None:
    (run.checkpoints / name).write_text("x")
    with pytest.raises(ConfigurationError, match="already holds a run; continue it with --resume"):
        RunDirectory.open_new(run)


#: what a launch that came to no checkpoint leaves: what goes before another start, and what stays
TRAINED = ("metrics.csv", "details.jsonl", "health.jsonl", "samples.jsonl", "summary.json", "report.html")
TRAINED += (
    "events.out.tfevents.1795980268.host.7.0",
    "figures/depth-share.png",
    "figures/learning_curve.png",
)
RECORDS = ("config.yaml", "config-1.yaml", "run.json", "status.json", "tokenizer.json", "source.diff")
RECORDS += ("source-12.diff",)


def test_a_run_without_a_checkpoint_is_free_and_cleared(tmp_path: Path) -> None:
    made = RunDirectory.open_new(tmp_path / "run")
    (made.path / "lost+found").mkdir()
    for name in (*TRAINED, *RECORDS, ".metrics.csv.7.tmp"):
        (made.path / name).write_text("x")
    assert RunDirectory.open_new(made) == made
    assert made.is_run
    clear(made.path)
    for name in TRAINED:
        assert not (made.path / name).exists(), name
    for name in RECORDS:
        assert (made.path / name).exists(), name
    clear(made.path, with_records=True)
    made.sweep()
    assert sorted(os.listdir(made)) == ["checkpoints", "figures", "lost+found"]


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "report.html", "summary.json"])
def test_what_only_looks_like_a_launch_is_somebody_elses(tmp_path: Path, name: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("mine")
    with pytest.raises(ConfigurationError, match=rf"holds other files \({re.escape(name)}\)"):
        RunDirectory.open_new(tmp_path / "run")
    assert (tmp_path / "run" / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "metrics.csv.old", "run", "config-x.yaml"])
def test_other_files_are_in_the_way(run: RunDirectory, name: str) -> None:
    status.write_status(run.status, "failed", 0, 1)
    (run.path / name).write_text("mine")
    with pytest.raises(
        ConfigurationError, match=rf"holds other files \({re.escape(name)}\).* own; name a new"
    ):
        RunDirectory.open_new(run)
    for number in range(4):
        (run.path / f"zebra{number}").mkdir()
    with pytest.raises(ConfigurationError, match=", zebra0, zebra1 and 2 more"):
        RunDirectory.open_new(run)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_this_process_prints_into_may_lie_in_the_folder(tmp_path: Path, stream: str) -> None:
    program = "import sys; from app.run.directory import RunDirectory; RunDirectory.open_new(sys.argv[1])"
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "log").open("w") as log:
        subprocess.run([sys.executable, "-c", program, tmp_path / "run"], check=True, **{stream: log})


#: names of run directories that are mistakes, in a folder with ``file``, ``dangling``, ``loop`` and ``here``
MISTAKES = {
    "x" * 300: "a name of 300 bytes, and a name has at most 255; shorten it",
    "é" * 200: "a name of 400 bytes",
    "/".join(["y" * 200] * 25): r"a path of [\d,]+ bytes, and there may be at most",
    "/".join(
        ["y" * 100] * 39
    ): r"a path of [\d,]+ bytes, and there may be at most",  # with no room for the files in it
    "a\nb": "'a\\\\nb': holds a control character",
    "a\x1b[2Jb": "holds a control character",
    "a\0b": "holds a NUL character",
    "a\udcffb": "is not UTF-8",
    "s3://bucket/run": "is an address; name a folder of this machine",
    "file": "is a file; name a directory",
    "file/run": "file is a file, and nothing can lie below it; name a directory",
    "file/a/b/run": "file is a file, and nothing can lie below it",
    "/dev/null": "is a file; name a directory",
    "/dev/null/run": "/dev/null is a file, and nothing can lie below it",
    "dangling": "is a link to nowhere, which is not there",
    "dangling/run": "dangling is a link to nowhere, which is not there",
    "loop": "is a link to loop, which is not there",
    "loop/run": "loop is a link to loop, which is not there",
    "/": "is the root of the file system",
    "//": "is the root of the file system",
    "/..": "is the root of the file system",
    "to_root": "is the root of the file system",
    ".": "is the current folder",
    "gone/..": "is the current folder",
    "..": "is above the current folder",
    "../..": "is above the current folder",
    "home": "is the home folder",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_names_that_are_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    here = tmp_path / "above" / "here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    (here / "file").write_text("mine")
    (here / "home").mkdir()
    monkeypatch.setenv("HOME", str(here / "home"))
    for link, target in (("dangling", "nowhere"), ("loop", "loop"), ("to_root", "/")):
        (here / link).symlink_to(target)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigurationError, match=MISTAKES[name]) as refused:
        RunDirectory.open_new(name)
    said = str(refused.value)
    assert said.isprintable(), "one line, and nothing that a terminal would act on"
    assert said.startswith("--run_dir ")
    assert sorted(tmp_path.rglob("*")) == before


def test_names_that_are_unusual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "linked").mkdir()
    (tmp_path / "link").symlink_to("linked")
    for name in ("läuft", "a b", "x" * 255, "link", "link/deep", "~", "...", "-", "a\u00a0b", "gone/../new"):
        assert RunDirectory.open_new(name).checkpoints.is_dir()


def test_existing_run_in_use_names_the_holder(run: RunDirectory) -> None:
    with RunLock(run), pytest.raises(ConfigurationError, match=f"in use by process {os.getpid()} on host"):
        RunDirectory.open_new(run)


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigurationError, match="file is a file, and nothing can lie below it"):
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
