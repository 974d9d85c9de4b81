"""Places that cannot be written to."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from app.run.directory import RunDirectory
from app.run.status import true_state
from tests.app.conftest import Reference
from tests.support import faults, runs, tiny
from tests.support.application import Application, Ended, environment
from tests.support.small_disk import small_disk

pytestmark = pytest.mark.process


def assert_told(ended: Ended, *said: str) -> None:
    """Exit code 5 with its reason on one line, and no traceback of any thread."""
    assert ended.code == 5, ended
    assert ended.err.count("\n") == 1, ended
    assert ended.err.startswith("error: cannot write "), ended
    for text in said:
        assert text in ended.err, ended


def assert_true(run: Path) -> None:
    """The run says how it ended, and nothing half-written is left."""
    found = runs.status(run)
    assert (found["state"], found["exit_code"]) == ("failed", 5)
    assert found["reason"].startswith("cannot write ")
    assert true_state(RunDirectory(run)) == "failed"
    assert not [path for path in run.rglob("*") if path.name.endswith(".tmp")]


def test_a_run_directory_below_a_file(application: Application, reference: Reference, tmp_path: Path) -> None:
    # The name is the mistake, and no disk would help.
    (tmp_path / "file").write_text("in the way")
    for run_dir in (tmp_path / "file", tmp_path / "file" / "run"):
        ended = application.run(
            "fit", "--config", reference.baseline_config, "--run_dir", run_dir, cwd=tmp_path
        )
        assert ended.code == 2, ended
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
    assert_told(
        ended, "Permission denied; make the directory writable, or name another folder with --run_dir"
    )
    assert not list((tmp_path / "closed").iterdir())


#: the application asks for 50 MB before a run; for a disk that fills up later on, for nothing
NO_DEMAND = faults.replaced("app.run.launching.REQUIRED_BYTES", "0")
#: without it a checkout with changes would have a large file to write before all others
NO_DIFFERENCE = faults.replaced("app.run.manifest.source_diff", "lambda repo: None")


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
        assert_told(
            ended, "resume-000010.ckpt: No space left on device", "bytes needed, 0 bytes free",
            f"free some space, or use a folder on another disk; go on with --resume {run}\n",
        )  # fmt: skip
        assert_true(run)
        assert runs.saved_steps(run) == [5]
        assert runs.last_checkpoint(run)["archlab"]["step"] == 5
        (disk / "other").unlink()
        ended = application.run(*words, cwd=tmp_path, prelude=NO_DEMAND)
        assert ended.code == 0, ended
        assert "resumed  after step 5\n" in ended.out
        runs.assert_same_run(run, reference.baseline)


def test_the_last_word_of_a_run_does_not_fit(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    """What has ended it is still what is reported; where nothing else has, that is the reason."""
    for place, also, code, said in (
        ("step", "; raise KeyError('the cause')", 1, "KeyError: 'the cause'\n"),
        ("end", "", 5, "status.json: Is a directory"),
    ):
        run = tmp_path / place
        in_the_way = (
            f"os.remove({str(run / 'status.json')!r}); os.makedirs({str(run / 'status.json' / 'x')!r})"
        )
        ended = application.run(
            "fit", "--config", reference.baseline_config, "--run_dir", run, cwd=tmp_path,
            prelude=faults.at(place, in_the_way + also, 8),
        )  # fmt: skip
        assert ended.code == code, ended
        assert said in ended.err, ended


def fills_up_at(name: str, disk: Path) -> str:
    """Source that fills the disk when a file of this name (a regular expression) is first opened for writing."""
    return f"""
import os, re, sys
state = []
def fill(event, args):
    if event != "open" or state or not isinstance(args[0], (str, bytes)) or not args[2] & (os.O_WRONLY | os.O_RDWR):
        return
    if re.search({name!r}, os.fsdecode(args[0])):
        state.append(args[0])
        with open({str(disk / "other")!r}, "wb", buffering=0) as other:
            try:
                while True:
                    other.write(bytes(4096))
            except OSError:
                pass
sys.addaudithook(fill)
"""


#: every file that a run writes, as it is first opened
FILES = (
    r"/run/\.lock-.*/owner\.json$",
    r"/run/\.status\.json\.",
    r"/run/\.tokenizer\.json\.",
    r"/run/\.source\.diff\.",
    r"/run/\.run\.json\.",
    r"/run/\.config\.yaml\.",
    r"/run/\.config-1\.yaml\.",
    r"/run/events\.out\.tfevents\.",
    r"/run/metrics\.csv$",
    r"/run/details\.jsonl$",
    r"/run/health\.jsonl$",
    r"/run/samples\.jsonl$",
    r"/run/figures/\.depth-.*\.png\.",
    r"/run/checkpoints/\.resume-000010\.ckpt\.\d+\.tmp",
    r"/run/checkpoints/\.resume-000020\.ckpt\.sha256\.",
    r"/run/checkpoints/\.best-000020\.ckpt\.\d+\.tmp",
    r"/run/\.summary\.json\.",
    r"/run/figures/.*learning_curve\.png",
)


@pytest.mark.stress
@pytest.mark.parametrize("name", FILES)
def test_every_file_that_finds_the_disk_full(
    application: Application, reference: Reference, tmp_path: Path, name: str
) -> None:
    """A run of which one file finds the disk full; told again with room it ends as one that always had room."""
    has_difference = faults.replaced("app.run.manifest.source_diff", "lambda repo: 'x' * 5000")
    with small_disk(tmp_path / "disk", "8m") as disk:
        run = disk / "run"
        words = ("fit", "--config", reference.config, "--run_dir", run, "--resume", "auto")
        prelude = NO_DEMAND + (has_difference if "diff" in name else NO_DIFFERENCE)
        ended = application.run(
            *words, cwd=tmp_path, prelude=prelude + fills_up_at(name, disk), whole_ending="curve" in name
        )
        assert_told(ended, "No space left on device", " bytes free; free some space")
        if run.exists():
            assert_true(run)
            kept = runs.saved_steps(run)
            assert not kept or runs.last_checkpoint(run)["archlab"]["step"] == kept[-1]
        (disk / "other").unlink()
        ended = application.run(*words, cwd=tmp_path, prelude=prelude)
        assert ended.code == 0, ended
        runs.assert_same_run(run, reference.clean)


def limited(n_bytes: int) -> str:
    """Source that allows no larger file, as ``ulimit -f`` does."""
    return f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({n_bytes}, {n_bytes}))\n"


def test_a_limit_on_the_size_of_a_file(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    """TensorBoard's events are the first file that reaches it."""
    run = tmp_path / "run"
    ended = application.run(
        "fit", "--config", reference.baseline_config, "--run_dir", run, "--trainer.log_every_n_steps", 1,
        "--trainer.max_steps", 500, "--checkpoint_every_n_steps", 500, "--trainer.val_check_interval", 500,
        cwd=tmp_path, prelude=NO_DIFFERENCE + limited(6000),
    )  # fmt: skip
    assert_told(
        ended, "/events.out.tfevents.", "File too large; ", "a file may have 6,000 here (ulimit -f); raise the limit; "
    )  # fmt: skip
    assert_true(run)
    events = EventAccumulator(str(run)).Reload()
    steps = [event.step for event in events.Scalars("train/loss")]
    assert steps == [*range(1, len(steps) + 1)]
    assert len(steps) > 5
    # Nothing has been saved; with a higher limit the same command line begins again.
    ended = application.run(
        "fit", "--config", reference.baseline_config, "--run_dir", run, cwd=tmp_path, prelude=NO_DIFFERENCE
    )
    assert ended.code == 0, ended
    runs.assert_same_run(run, reference.baseline)


@pytest.mark.stress
@pytest.mark.parametrize("n_bytes", [100, 600, 1100, 1500, 1900, 2500, 4000, 8000, 30_000, 100_000])
def test_any_limit_on_the_size_of_a_file(
    application: Application, reference: Reference, tmp_path: Path, n_bytes: int
) -> None:
    run = tmp_path / "run"
    words = ("fit", "--config", reference.config, "--run_dir", run)
    ended = application.run(*words, cwd=tmp_path, prelude=NO_DIFFERENCE + limited(n_bytes))
    if n_bytes == 100:  # not even the message fits into the file that it is printed to
        assert ended.code != 0
        assert not run.exists() or true_state(RunDirectory(run)) not in ("starting", "running", "finished")
    else:
        assert_told(ended, "File too large")
        if run.exists():
            assert_true(run)


@pytest.mark.stress
def test_a_limit_that_the_shell_has_set(reference: Reference, tmp_path: Path) -> None:
    """A whole process: the signal that comes with the limit, and libraries that want to keep caches at home."""
    (tmp_path / "home").mkdir()
    words = [sys.executable, "-m", "app", "fit", "--config", reference.baseline_config, "--run_dir=~/run"]
    words += ["--trainer.log_every_n_steps=1", "--trainer.max_steps=500", "--checkpoint_every_n_steps=500"]
    ended = subprocess.run(
        ["bash", "-c", 'ulimit -f 6; exec "$@"', "-", *map(str, words)], cwd=tmp_path, capture_output=True, text=True,
        env=environment() | {"HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert_told(Ended(ended.returncode, ended.stdout, ended.stderr), "File too large")
    run = tmp_path / "home" / "run"
    if run.exists():  # not where a changed checkout has a large difference to keep
        assert_true(run)


def test_a_run_directory_that_is_removed_meanwhile(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    removes = faults.at("step", f"__import__('shutil').rmtree({str(run)!r})", 3)
    ended = application.run(
        "fit", "--config", reference.baseline_config, "--run_dir", run, cwd=tmp_path, prelude=removes
    )
    assert ended.code == 5, ended
    assert ended.err.count("\n") == 1, ended
    assert str(run) in ended.err
    assert "--resume" not in ended.err, "there is nothing to go on with"
    assert not run.exists()


#: commands that write results into ``out``, with a file that finds no room
RESULTS = {
    "report {run} --output {out}": "/report.html",
    "compare {run} --output {out}": "/figures/curves.png",
    "gamma {run} --output {out}": "/gamma.json",
    "trace {run} --text fox --output {out}": "/trace.html",
    "crystallize {run} --layers 0 --n_blocks 4 --calibration_blocks 2 --seq_len 16 --out_dir {out}": "/lock",
}


@pytest.mark.stress
@pytest.mark.parametrize("command", RESULTS)
def test_results_that_find_no_room(
    application: Application, reference: Reference, tmp_path: Path, command: str
) -> None:
    with small_disk(tmp_path / "disk", "4m") as disk:
        words = command.format(run=reference.baseline, out=disk / "out").split()
        told = ""
        # First with no room at all, then with a little more each time, until there is enough.
        for n_free in (0, 4096, 16 << 10, 64 << 10, 256 << 10, (4 << 20) - 4096):
            with (disk / "other").open("wb") as other:
                os.posix_fallocate(other.fileno(), 0, (4 << 20) - n_free)
            ended = application.run(*words, cwd=tmp_path)
            if ended.code == 0:
                break
            assert_told(ended, "No space left on device")
            told += ended.err
            (disk / "other").unlink()
            shutil.rmtree(disk / "out", ignore_errors=True)
        assert ended.code == 0, ended
        assert f"{disk / 'out'}{RESULTS[command]}: No space left on device" in told


@pytest.mark.stress
def test_prepared_data_that_finds_no_room(application: Application, tmp_path: Path) -> None:
    text = tiny.write_text(tmp_path / "text.txt")
    with small_disk(tmp_path / "disk", "64k") as disk:
        settings = {"class_path": "datamodules.TextDataModule"}
        config = tiny.write(tmp_path / "config.yaml", tiny.gpt(text))
        (disk / "other").write_bytes(bytes(60 << 10))
        ended = application.run(
            "prepare", "--config", config, "--data", settings["class_path"], "--data.init_args.path", text,
            "--data.init_args.cache_dir", disk / "cache", "--data.init_args.tokenizer", "byte", cwd=tmp_path,
        )  # fmt: skip
        assert ended.code == 5, ended
        assert ended.err.count("\n") == 1, ended
        assert "No space left on device" in ended.err
        assert not [path for path in (disk / "cache").rglob("*") if path.name.endswith((".tmp", ".bin"))]


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
