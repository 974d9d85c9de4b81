"""Two processes and one run directory."""

import json
import os
import socket
import time
from pathlib import Path

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
