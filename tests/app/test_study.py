"""A study of real runs: killed at random moments and gone on with, verified, one job of an array."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny
from tests.support.application import REPOSITORY, Application
from tests.support.small_disk import small_disk

pytestmark = pytest.mark.process


def write_study(folder: Path, **keys: Any) -> Path:
    gpt = tiny.gpt(tiny.write_text(folder / "text.txt", 900), trainer__max_steps=20)
    base = tiny.write(folder / "base.yaml", tiny.changed(gpt, {"trainer__val_check_interval": 10}))
    given = {"base": base.name, "rows": {"gpt": {}}, "seeds": [1, 2], "margin": 0.5} | keys
    return tiny.write(folder / "widths.yaml", given)


def without_times(output: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((output / "results.json").read_text())
    for row in report["rows"].values():
        row.pop("times", None)
    return report


def command(*words: Any) -> list[str]:
    return [sys.executable, "-m", "app", "study", *map(str, words)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def children_of(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


def trains(output: Path, since: float) -> bool:
    """Whether a run of a study is in its steps, of those that have begun since a moment."""
    found = [*output.glob("runs/*/*/status.json")]
    return any(file.stat().st_mtime > since and '"running"' in file.read_text() for file in found)


def killed_and_gone_on_with(study: Path, output: Path, seed: int, n_kills: int, parallel: int = 1) -> None:
    """Runs a study whose runner, runs and runner, or both at once, are killed at random moments, until it is whole."""
    draw = random.Random(seed)
    words = command(study, "--output", output, "--parallel", parallel)
    for number in range(n_kills):
        n_begun = len([*output.glob("runs/*/*/run.json")])
        started = time.time()
        runner = subprocess.Popen(words, env=environment(), cwd=study.parent, stdout=subprocess.DEVNULL)
        while len([*output.glob("runs/*/*/run.json")]) <= n_begun + 1:  # however long it takes to import
            time.sleep(0.1)
            assert runner.poll() is None, "it has ended before it could be killed"
        time.sleep(draw.uniform(0, 8))
        while not trains(output, started):  # these runs take seconds, and most of that is not training
            time.sleep(0.02)
            assert runner.poll() is None, "it has ended before it could be killed"
        what = ("runner", "runs", "both")[number % 3]
        makers = children_of(runner.pid)  # what forks the runs
        runs = [pid for maker in makers for pid in children_of(maker)]
        for pid in {"runner": [], "runs": runs, "both": [*makers, *runs]}[what]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(draw.uniform(0, 8) if what == "runs" else 0)
        runner.kill()
        runner.wait()
    ended = subprocess.run(words, env=environment(), cwd=study.parent, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.stress
def test_a_study_that_is_killed_ends_as_one_that_is_not(application: Application, tmp_path: Path) -> None:
    study = write_study(tmp_path)
    whole = application.run("study", study, "--output", tmp_path / "whole", "--parallel", 2, cwd=tmp_path)
    assert whole.code == 0, whole
    assert "gpt/seed_2: finished at step 20" in whole.out
    assert "2/2" in whole.out
    broken = tmp_path / "broken"
    runner = application.start("study", study, "--output", broken, cwd=tmp_path)
    run = broken / "runs" / "gpt" / "seed_1"
    runner.wait_until(lambda: (run / "metrics.csv").exists(), "begin its first run")
    runner.kill()  # and its run goes on
    runner.wait()
    again = application.run("study", study, "--output", broken, cwd=tmp_path)
    assert again.code == 0, again
    assert without_times(broken) == without_times(tmp_path / "whole")
    # A finished study costs next to nothing, and checkpoints may be gone.
    for checkpoint in broken.rglob("*.ckpt*"):
        checkpoint.unlink()
    launches = len(json.loads((run / "run.json").read_text())["launches"])
    assert application.run("study", study, "--output", broken, cwd=tmp_path).code == 0
    assert len(json.loads((run / "run.json").read_text())["launches"]) == launches
    one = application.run("study", study, "--output", broken, "--index", 1, cwd=tmp_path)
    assert (one.code, one.out) == (0, "gpt/seed_2 is finished; nothing to do\n")


def test_rows_that_fit_would_refuse_are_told_before_anything_runs(
    application: Application, tmp_path: Path
) -> None:
    study = write_study(tmp_path, product={"model.d_modle": [8, 16]})
    ended = application.run("study", study, "--output", tmp_path / "out", cwd=tmp_path)
    assert ended.code == 2
    assert ended.err.splitlines() == [
        f"error: row gpt-d_modle_{width}: model.init_args.d_modle (command line): there is no such key; did you mean "
        "'d_model'?"
        for width in (8, 16)
    ]
    assert not (tmp_path / "out" / "runs").exists()
    # A job of an array is refused by app fit itself.
    assert application.run("study", study, "--index", 9, cwd=tmp_path).code == 2


@pytest.mark.stress
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [0])
def test_twelve_rows_killed_at_random_moments(tmp_path: Path, seed: int) -> None:
    product = {"model.d_model": [8, 12, 16, 24], "model.dropout": [0.0, 0.1, 0.2]}
    study = write_study(tmp_path, product=product, seeds=[1, 2, 3])
    began = time.monotonic()
    ended = subprocess.run(
        command(study, "--output", tmp_path / "whole", "--parallel", 2),
        env=environment(), cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    print(f"12 rows of 3 seeds: {time.monotonic() - began:.0f} s")
    killed_and_gone_on_with(study, tmp_path / "broken", seed, n_kills=3, parallel=2)
    logs = [log.read_text() for log in (tmp_path / "broken" / "jobs").glob("*.log")]
    assert any("the launch before this one" in log for log in logs), "no kill has met a run"
    assert without_times(tmp_path / "broken") == without_times(tmp_path / "whole")
    row = "gpt-d_model_8-dropout_0.0"
    verified = subprocess.run(
        command(study, "--output", tmp_path / "broken", "--verify", row),
        env=environment(), cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert f"{row}/seed_1: the same to the last bit, 20 steps" in verified.stdout


@pytest.mark.stress
@pytest.mark.timeout(1800)
def test_real_runs_on_a_disk_that_is_too_small_and_then_is_not(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    with small_disk(tmp_path / "disk", "2m") as disk:
        words = command(study, "--output", disk / "out")
        ended = subprocess.run(words, env=environment(), cwd=tmp_path, capture_output=True, text=True)
        assert ended.returncode == 5, ended.stdout + ended.stderr
        for seed in (1, 2):
            assert f"row gpt/seed_{seed}: failed with exit code 5: " in ended.stderr
        assert "bytes needed" in ended.stderr
        assert "2 of 2 runs are not finished; the same command goes on with them" in ended.stderr
        subprocess.run(["mount", "-o", "remount,size=300m", disk], check=True)
        ended = subprocess.run(words, env=environment(), cwd=tmp_path, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert len(without_times(disk / "out")["rows"]["gpt"]["figures"]) == 2
