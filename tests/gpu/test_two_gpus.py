"""Two GPUs: they make the steps of one, equal runs are equal, and none waits for another for ever."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.runs_there import N_STEPS, SHIPPED, Figure, differing, farthest, fit, needs, words
from tests.support import faults, runs
from tests.support.application import Application, Running, assert_gone, children

pytestmark = needs(2)
EXACT: tuple[Any, ...] = ("--trainer.precision", "32-true", "--model.dropout", 0, "--trainer.max_steps", 12)


@pytest.mark.parametrize("name", [*SHIPPED, "tilelli_fp", "local_gpt_fa"])
def test_they_make_the_steps_of_one_and_equal_runs_are_equal(
    application: Application, tmp_path: Path, figure: Figure, name: str
) -> None:
    fit(application, tmp_path / "one", *words(name, *EXACT))
    for run in ("two", "again"):
        ended = fit(application, tmp_path / run, *words(name, *EXACT, overlay="ddp"))
        assert "steps are replayed from here on, equal to eager ones, bit for bit" in ended.out
    assert differing(tmp_path / "two", tmp_path / "again") == []
    distance = farthest(tmp_path / "two", tmp_path / "one")
    figure(f"{name}: two equal runs have equal bits; {distance:.1e} from one GPU")
    assert distance <= 1e-5


@pytest.mark.parametrize("name", ["gpt_char", "tilelli_banks4", "equilibrium_char"])
def test_in_shards_a_killed_run_goes_on_to_the_bit_and_writes_on_a_processor(
    application: Application, tmp_path: Path, figure: Figure, name: str
) -> None:
    given = words(name, overlay="fsdp")
    fit(application, tmp_path / "clean", *given)
    launcher = application.start(
        *given, "--run_dir", "run", cwd=tmp_path, prelude=faults.kill_at("batch", 23)
    )
    launcher.wait(240)
    fit(application, tmp_path / "run", *given)
    assert differing(tmp_path / "run", tmp_path / "clean") == []
    written = application.run(
        "generate", "run", "--tokens", 20, "--device", "cpu", cwd=tmp_path, env={"CUDA_VISIBLE_DEVICES": ""}
    )
    assert written.code == 0, written
    figure(f"{name}: killed in shards, no bit differs")


def replaying(application: Application, folder: Path, *more: Any) -> tuple[Running, list[int]]:
    """A run whose steps are replayed, and all of its processes, the launcher first."""
    given = words("gpt_char", "--trainer.max_steps", 1_000_000, *more, overlay="ddp")
    launcher = application.start(*given, "--run_dir", "run", cwd=folder)
    launcher.wait_for("steps are replayed from here on", timeout=120)
    return launcher, [launcher.pid, *children(launcher.pid)]


def goes_on(application: Application, folder: Path) -> None:
    step = runs.status(folder / "run")["step"]
    fit(application, folder / "run", "fit", "--trainer.max_steps", step + N_STEPS)


def test_a_lost_rank_ends_a_run_of_graphs(application: Application, tmp_path: Path, figure: Figure) -> None:
    launcher, pids = replaying(application, tmp_path)
    os.kill(pids[1], signal.SIGKILL)
    began = time.monotonic()
    ended = launcher.wait(15)
    figure(f"a rank killed: exit {ended.code} after {time.monotonic() - began:.1f} s")
    assert ended.code == 6, ended
    assert "rank 1 was lost (signal 9)" in ended.err
    assert_gone(pids, 15)
    goes_on(application, tmp_path)


def test_a_lost_launcher_leaves_nobody_behind(
    application: Application, tmp_path: Path, figure: Figure
) -> None:
    launcher, pids = replaying(application, tmp_path)
    launcher.kill()
    began = time.monotonic()
    launcher.wait(15)
    assert_gone(pids, 15)
    figure(f"the launcher killed: nobody left after {time.monotonic() - began:.1f} s")
    goes_on(application, tmp_path)


def test_a_stopped_rank_is_named(application: Application, tmp_path: Path, figure: Figure) -> None:
    limit = ("--trainer.strategy.init_args.timeout_seconds", 5)
    launcher, pids = replaying(application, tmp_path, *limit)
    os.kill(pids[1], signal.SIGSTOP)
    began = time.monotonic()
    ended = launcher.wait(40)
    figure(f"a rank stopped, limit 5 s: exit {ended.code} after {time.monotonic() - began:.1f} s")
    assert ended.code == 6, ended
    assert f"rank 1 is behind (host {os.uname().nodename}, process {pids[1]})" in ended.err
    assert_gone(pids, 15)
    goes_on(application, tmp_path)


def test_a_signal_while_a_rank_hangs(application: Application, tmp_path: Path, figure: Figure) -> None:
    launcher, pids = replaying(application, tmp_path)
    os.kill(pids[1], signal.SIGSTOP)
    launcher.kill(signal.SIGTERM)
    began = time.monotonic()
    ended = launcher.wait(20)
    figure(f"SIGTERM beside a stopped rank: exit {ended.code} after {time.monotonic() - began:.1f} s")
    assert ended.code == 143, ended
    assert_gone(pids, 15)
