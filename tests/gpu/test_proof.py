"""Steps of a run on a GPU are made again to the bit; honest runs are accepted, changed ones refused."""

import json
from functools import partial
from pathlib import Path

import pytest

from tests.gpu.runs_there import Figure, fit, needs, summary, words
from tests.support import faults, runs
from tests.support.application import Application
from tests.support.tampering import not_refused

pytestmark = needs(1)
NAMES = ("tilelli_banks4", "gpt_char")
TAMPERED = ("a weight", "a metric", "a validation", "a configuration")


def killed(application: Application, run: Path, name: str, n_steps: int, log_every: int) -> None:
    """A run at its shipped size that was killed twice."""
    given = words(name, "--seed", 7, "--trainer.max_steps", n_steps, "--trainer.log_every_n_steps", log_every)
    for step in (n_steps // 3, 4 * n_steps // 5):
        fit(application, run, *given, code=-9, prelude=faults.kill_at("batch", step))
    fit(application, run, *given)
    summary(run)


@pytest.mark.parametrize("name", NAMES)
def test_a_hundred_random_steps_are_made_again(
    application: Application, tmp_path: Path, figure: Figure, name: str
) -> None:
    run, file = tmp_path / "run", tmp_path / "steps.json"
    killed(application, run, name, n_steps=150, log_every=1)
    ended = application.run("replay", run, "--sample", 100, "--json", file, cwd=tmp_path, timeout=300)
    assert ended.code == 0, ended
    assert "100 of 100 steps were logged by the run: as recorded, bit for bit" in ended.out
    steps = json.loads(file.read_text())["steps"]
    assert [each["figures"] for each in steps] == [each["recorded"] for each in steps]
    assert all({"train/loss", "train/grad_norm"} <= each["figures"].keys() for each in steps)
    figure(f"{name}: 100 random steps of 150, killed twice: loss and gradient norm bitwise")


@pytest.mark.parametrize("name", NAMES)
def test_an_honest_run_is_accepted_and_changed_ones_are_refused(
    application: Application, tmp_path: Path, figure: Figure, name: str
) -> None:
    run = tmp_path / "run"
    killed(application, run, name, n_steps=40, log_every=5)
    honest = runs.copied(run, tmp_path / "honest")
    jobs = {each: partial(not_refused, application, run, each, True) for each in TAMPERED}
    begun = application.begin(jobs, at_once=len(jobs))
    ended = application.run("verify", honest, "--all", cwd=tmp_path, timeout=300)
    assert ended.code == 0, ended
    found = json.loads((honest / "verified.json").read_text())
    assert found["verdict"] == "verified"
    assert found["compared"]["steps"] == [1, *range(5, 41, 5)]
    assert found["compared"]["validations"] == [20, 40]
    wrong = [begun[each].result() for each in TAMPERED]
    assert not any(wrong), "\n".join(wrong)
    figure(
        f"{name}: all 40 steps made again: accepted; {len(TAMPERED)} of {len(TAMPERED)} changed runs refused"
    )
