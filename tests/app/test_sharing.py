"""Two processes and one run directory."""

import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from tests.app.conftest import Reference
from tests.support import faults, runs
from tests.support.application import Application

pytestmark = pytest.mark.process


@pytest.mark.parametrize("resume", [(), ("--resume", "auto")], ids=["new", "auto"])
def test_of_two_that_start_together_one_wins(
    application: Application, reference: Reference, tmp_path: Path, resume: tuple[str, ...]
) -> None:
    words = ("fit", "--config", reference.baseline_config, "--run_dir", tmp_path / "run", *resume)
    # The winner holds on to the directory until the others have ended.
    go = tmp_path / "go"
    waits = faults.at("step", f"while not os.path.exists({str(go)!r}): __import__('time').sleep(0.01)", 1)
    started = [application.start(*words, cwd=tmp_path, prelude=waits) for _ in range(3)]
    deadline = time.monotonic() + 20
    while sum(process.has_ended for process in started) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    losers = [process for process in started if process.has_ended]
    (winner,) = [process for process in started if process not in losers]
    go.touch()
    for process in losers:
        ended = process.wait()
        assert ended.code == 2, ended
        assert f"is in use by process {winner.pid} on host {socket.gethostname()} since" in ended.err
    assert winner.wait().code == 0, winner.output()
    runs.assert_same_run(tmp_path / "run", reference.baseline)


def test_a_lock_outlives_its_holder_and_is_taken_over(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    words = ("fit", "--config", reference.baseline_config, "--run_dir", tmp_path / "run", "--resume", "auto")
    killed = application.start(*words, cwd=tmp_path, prelude=faults.kill_at("step", 8))
    assert killed.wait().code == -9
    assert json.loads((tmp_path / "run" / "lock" / "owner.json").read_text())["pid"] == killed.pid
    assert runs.status(tmp_path / "run")["state"] == "running"
    ended = application.run(*words, cwd=tmp_path)
    assert ended.code == 0, ended
    assert not (tmp_path / "run" / "lock").exists()
    runs.assert_same_run(tmp_path / "run", reference.baseline)


def test_a_stopped_run_is_displaced_only_where_its_life_cannot_be_told(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ("fit", "--config", reference.baseline_config, "--run_dir", run, "--resume", "auto")
    stops = faults.replaced(
        "app.training.LanguageModelModule.training_step",
        "lambda self, *args: [self.trainer.global_step in (7, 12) and __import__('signal').raise_signal("
        f"{int(signal.SIGSTOP)}), original(self, *args)][1]",
    )
    # A stop of minutes, in a second: the first step after it looks at the lock.
    stopped = application.start(
        *words,
        cwd=tmp_path,
        prelude=stops + "import app.training.run_callbacks.retention as k; k.HEARTBEAT_SECONDS = 0.1",
    )
    owner = run / "lock" / "owner.json"
    try:
        stopped.wait_until(lambda: process_state(stopped.pid) == "T", "stop")
        for hours in (2, -2):
            os.utime(owner, (time.time() - hours * 3600,) * 2)
            before = runs.files(run)
            refused = application.run(*words, cwd=tmp_path)
            assert refused.code == 2, refused
            assert f"is in use by process {stopped.pid} on host {socket.gethostname()} since" in refused.err
            assert runs.files(run) == before
        stopped.kill(signal.SIGCONT)
        stopped.wait_until(lambda: runs.saved_steps(run)[-1:] == [10], "save")
        stopped.wait_until(lambda: process_state(stopped.pid) == "T", "stop again")
        # Seen from here, it runs in another container now.
        owner.write_text(json.dumps(json.loads(owner.read_text()) | {"machine": "elsewhere"}))
        os.utime(owner, (0, 0))
        ended = application.run(*words, cwd=tmp_path)
        assert ended.code == 0, ended
        after = files_of_the_run(run)
    finally:
        stopped.kill(signal.SIGCONT)
    displaced = stopped.wait()
    assert displaced.code == 5, displaced
    assert displaced.err.startswith(f"error: {run} was taken over by another process"), displaced
    assert displaced.err.count("\n") == 1
    assert files_of_the_run(run) == after
    assert runs.status(run)["state"] == "finished"
    runs.assert_same_run(run, reference.baseline)


def test_a_launch_that_is_displaced_at_any_place_leaves_the_run_as_it_is(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    started = {}
    for place, step in (("model", 0), ("start", 0), ("save", 10), ("summary", 0)):
        run, left = tmp_path / place, tmp_path / f"{place}-left"
        theirs = json.dumps({"host": "elsewhere", "pid": 7, "token": "theirs"})
        taken = (
            f"open({str(run / 'lock' / 'owner.json')!r}, 'w').write({theirs!r});"
            f" __import__('shutil').copytree({str(run)!r}, {str(left)!r})"
        )
        words = ("fit", "--config", reference.baseline_config, "--run_dir", run)
        started[place] = application.start(*words, cwd=tmp_path, prelude=faults.at(place, taken, step))
    # One whose lock is removed by somebody, and that nobody else has touched, goes on.
    removed = f"__import__('shutil').rmtree({str(tmp_path / 'removed' / 'lock')!r})"
    words = ("fit", "--config", reference.baseline_config, "--run_dir", tmp_path / "removed")
    started["removed"] = application.start(*words, cwd=tmp_path, prelude=faults.at("step", removed, 8))
    for place, process in started.items():
        ended = process.wait()
        if place == "removed":
            assert ended.code == 0, ended
            runs.assert_same_run(tmp_path / place, reference.baseline)
            continue
        assert ended.code == 5, f"{place}: {ended}"
        assert "was taken over by another process (process 7 on host elsewhere" in ended.err
        assert ended.err.count("\n") == 1
        left = tmp_path / f"{place}-left"
        assert sorted(path.relative_to(left) for path in left.rglob("*")) == sorted(
            path.relative_to(tmp_path / place) for path in (tmp_path / place).rglob("*")
        ), place
        now, then = files_of_the_run(tmp_path / place), files_of_the_run(left)
        assert {name: content for name, (_, content) in now.items()} == {
            name: content for name, (_, content) in then.items()
        }, place


def process_state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def files_of_the_run(run: Path) -> dict[str, Any]:
    """All but TensorBoard's, of which every launch has one of its own."""
    return {name: content for name, content in runs.files(run).items() if "tfevents" not in name}


def test_a_holder_on_another_host_is_believed(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    run = runs.copied(reference.broken, tmp_path / "run")
    owner = run / "lock" / "owner.json"
    owner.write_text(json.dumps(json.loads(owner.read_text()) | {"host": "elsewhere"}))
    before = runs.files(run)
    ended = application.go_on(run)
    assert ended.code == 2, ended
    assert "on host elsewhere since" in ended.err
    assert runs.files(run) == before
    # Two minutes without a sign of life are enough.
    os.utime(owner, (0, 0))
    assert application.go_on(run).code == 0
    runs.assert_same_run(run, reference.clean)
