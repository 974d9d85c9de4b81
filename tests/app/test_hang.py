"""A rank on which the others wait for ever."""

import os
import signal
from pathlib import Path

import pytest

from tests.app.test_distributed import TWO, endless, on_rank, rank_one
from tests.support import faults, runs
from tests.support.application import Application, assert_gone, children
from tests.support.side_by_side import SideBySide

pytestmark = pytest.mark.process
side_by_side = SideBySide()
LIMIT = (
    "--trainer.strategy.class_path", "app.training.SupervisedDDPStrategy", "--trainer.strategy.init_args.timeout_seconds", 5,
)  # fmt: skip
LOOPS = "print('loops', flush=True)\n                while True: pass"


def hangs(application: Application, folder: Path, prelude: str, is_stopped: bool) -> str:
    """What is said of a run whose second rank hangs; the run then goes on."""
    run = folder / "run"
    words = ("fit", "--config", endless(folder), "--run_dir", run, "--resume", "auto", *TWO)
    launcher = application.start(*words, *LIMIT, cwd=folder, warm_rank=True, prelude=prelude)
    pids = [rank_one(launcher), *children(launcher.pid)]
    if is_stopped:
        os.kill(pids[0], signal.SIGSTOP)
    ended = launcher.wait(40)
    assert ended.code == 6, ended
    assert "Traceback" not in ended.err
    assert_gone(pids)
    said = runs.status(run)
    assert (said["state"], said["exit_code"]) == ("failed", 6)
    assert said["reason"].startswith("no rank has made progress for ")
    assert not (run / "lock").exists()
    first, *others = ended.err.splitlines()
    assert first.startswith("error: no rank has made progress for "), ended
    assert f"rank 1 is behind (host {os.uname().nodename}, process {pids[0]}): " in first
    assert others[0].startswith("  rank 0 (host ")
    assert "NCCL_DEBUG=INFO" in others[-1]
    ended = application.run(
        *words, "--trainer.max_steps", said["step"] + 30, cwd=folder, warm_rank=True, timeout=60
    )
    assert ended.code == 0, ended
    return first


@side_by_side
def test_a_rank_is_stopped(application: Application, tmp_path: Path) -> None:
    assert "no sign of life for " in hangs(application, tmp_path, "", is_stopped=True)


@pytest.mark.stress
@side_by_side
def test_a_rank_is_in_an_endless_loop(application: Application, tmp_path: Path) -> None:
    first = hangs(application, tmp_path, on_rank(1, faults.at("step", LOOPS, 9)), is_stopped=False)
    assert "training after step 8, " in first
    assert "in _put.<locals>.faulty (" in first
