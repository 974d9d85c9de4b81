"""One GPU: what is killed or stopped goes on to the bit, and steps from a graph are eager steps."""

import random
import signal
import time
from pathlib import Path

import pytest

from tests.gpu.runs_there import N_STEPS, SHIPPED, Figure, differing, fit, needs, summary, words
from tests.support import faults, runs
from tests.support.application import Application

pytestmark = needs(1)


@pytest.mark.parametrize("tokens", [0, 16_384], ids=["shipped", "16384"])
@pytest.mark.parametrize("name", SHIPPED)
def test_killed_twice_a_run_ends_as_a_clean_one(
    application: Application, tmp_path: Path, figure: Figure, name: str, tokens: int
) -> None:
    given = words(name, tokens=tokens)
    fit(application, tmp_path / "clean", *given)
    for step in (23, 41):
        fit(application, tmp_path / "killed", *given, code=-9, prelude=faults.kill_at("batch", step))
    fit(application, tmp_path / "killed", *given)
    runs.assert_same_run(tmp_path / "killed", tmp_path / "clean")
    fit(application, tmp_path / "eager", *given, "--graph", "false")
    assert differing(tmp_path / "eager", tmp_path / "clean") == []
    found = summary(tmp_path / "clean")
    assert found["launch/replayed_evaluation_batches"] > 0
    figure(
        f"{name}: killed twice, and eager: no bit differs; {found['launch/replayed_micro_batches']} steps replayed"
    )


@pytest.mark.parametrize("name", ["gpt_char", "tilelli_banks4"])
def test_a_stop_while_steps_are_replayed(
    application: Application, tmp_path: Path, figure: Figure, name: str
) -> None:
    """At three random moments, to the whole group of processes; each goes on as if nothing had been."""
    # By a rate that does not depend on the length, which follows from where the run was stopped.
    constant = ("--model.schedule", "constant", "--trainer.log_every_n_steps", 50)
    given, run = words(name, *constant), tmp_path / "run"
    seed, waits = time.time_ns(), []
    draw = random.Random(seed)
    for _ in range(3):
        process = application.start(
            *given, "--trainer.max_steps", 10**6, "--run_dir", run, "--resume", "auto", cwd=tmp_path
        )
        process.wait_for("steps are replayed from here on", timeout=120)
        time.sleep(draw.uniform(0, 0.5))
        process.kill(signal.SIGTERM, group=True)
        began = time.monotonic()
        ended = process.wait(60)
        waits.append(time.monotonic() - began)
        assert ended.code == 143, (seed, ended)
        step = runs.status(run)["step"]
        assert f"stopped by SIGTERM after step {step};" in ended.out
        assert runs.saved_steps(run)[-1] == step
        assert runs.last_checkpoint(run)["archlab"]["step"] == step
    figure(f"{name}: SIGTERM while steps are replayed: exit 143 after {max(waits):.1f} s at most (<= 10 s)")
    assert max(waits) <= 10
    length = ("--trainer.max_steps", step + N_STEPS)
    fit(application, run, *given, *length)
    fit(application, tmp_path / "clean", *given, *length)
    assert differing(run, tmp_path / "clean") == []
    assert runs.validated_steps(run) == runs.validated_steps(tmp_path / "clean")
