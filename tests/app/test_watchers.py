"""Watchers look and do not touch, and what they write knows nothing of interruptions."""

import os
import random
import signal
import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import pytest
import yaml

from tests.app.conftest import Reference
from tests.support import faults, runs, tiny, watched
from tests.support.application import Application
from tests.support.side_by_side import SideBySide, selected

pytestmark = pytest.mark.process
side_by_side = SideBySide()


@side_by_side
def test_all_watchers_and_none_give_the_same_weights(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    configuration = yaml.safe_load(reference.config.read_text())
    assert len(configuration["trainer"].pop("callbacks")) == 8
    config = tiny.write(tmp_path / "config.yaml", configuration)
    ours, theirs = (
        runs.last_checkpoint(run) for run in (application.fit(config, tmp_path / "run"), reference.clean)
    )
    for part in ("state_dict", "optimizer_states"):
        assert not runs.differences(ours[part], theirs[part], part)
    watched = {key for row in runs.curve(reference.clean) for key in row}
    alone = {key for row in runs.curve(tmp_path / "run") for key in row}
    assert {key.partition("/")[0] for key in watched - alone} == {
        "balance",
        "gamma",
        "health",
        "routes",
        "ternary",
    }
    assert runs.health(reference.clean), "the health of a run is judged"


#: what makes a resumed run of an architecture harder than the plain one
HARDER = {
    "tilelli": {"model__init_args__quantize": True, "trainer__accumulate_grad_batches": 2},
    "crystal": {"model__init_args__learn_basis": True},
    "gpt": {"model__init_args__nonfinite": "skip"},
}
# A logged step that makes no update.
BAD_STEP = """
from app.training import LanguageModelModule
training_step = LanguageModelModule.training_step
def bad(self, batch, batch_idx):
    result = training_step(self, batch, batch_idx)
    return result | {"loss": result["loss"] * float("nan")} if self.trainer.global_step == 1 else result
LanguageModelModule.training_step = bad
"""


def configured(architecture: str, folder: Path, **changes: object) -> Path:
    """The configuration of an architecture with dropout, all of its watchers and what is harder."""
    changes = {"checkpoint_every_n_steps": 4, "model__init_args__dropout": 0.1} | changes
    changes |= HARDER.get(architecture, {})
    text = tiny.write_text(folder / f"{architecture}.txt", n_words=1500)
    made = watched.configuration(architecture, text, **changes)
    if architecture == "tilelli":
        made["trainer"]["callbacks"].append({"class_path": "callbacks.TernaryHealth"})
    return tiny.write(folder / f"{architecture}.yaml", made)


def fit_with(application: Application, config: Path, run: Path, faulted: Sequence[str]) -> Path:
    """Trains to the end in as many launches as there are faults, and one more."""
    prelude = BAD_STEP if config.stem == "gpt" else ""
    for number, fault in enumerate([*faulted, ""]):
        ended = application.run(
            "fit", "--config", config, "--run_dir", run, "--resume", "auto", cwd=config.parent, prelude=prelude + fault
        )  # fmt: skip
        assert ended.code in ((-9, 143) if fault else (0,)), ended
        assert ("resumed  after step" in ended.out) == bool(number), ended
        if fault:  # TensorBoard orders the files of launches by the second in which they were begun
            time.sleep(1 - time.time() % 1)
    return run


def assert_same_streams(run: Path, clean: Path) -> None:
    """A run has ended as another one, and all that watchers wrote and TensorBoard shows is the same, once."""
    runs.assert_same_run(run, clean)
    assert runs.figures(clean)
    assert runs.samples(clean)
    ours, theirs = runs.events(run), runs.events(clean)
    for tag, shown in theirs.items():
        steps = [step for step, _ in shown]
        assert len(set(steps)) == len(steps), tag
        assert [step for step, _ in ours.get(tag, [])] == steps, tag
    assert not runs.differences(ours, theirs, "events")


@pytest.fixture(scope="module")
def interrupted(
    application: Application, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> dict[str, Future[tuple[Path, Path]]]:
    """A run that was killed and then stopped, and one that nobody disturbed, per architecture of a selected test."""
    folder = tmp_path_factory.mktemp("interrupted")

    def fit(architecture: str) -> tuple[Path, Path]:
        config = configured(architecture, folder)
        # The validation after step 4 is made, but the checkpoint of that step was written before it, and step 5 is
        # neither logged nor validated.
        faulted = [faults.kill_at("step", 7), faults.signal_at("step", signal.SIGTERM, 5)]
        clean = fit_with(application, config, folder / f"{architecture}, clean", [])
        return fit_with(application, config, folder / architecture, faulted), clean

    return application.begin({name: partial(fit, name) for name in selected(request, "interrupted_name")})


#: whose watchers are among those of the reference run, which other tests interrupt
SECOND = ("gpt", "tilelli", "equilibrium")


@pytest.mark.parametrize(
    "interrupted_name",
    [pytest.param(name, marks=[pytest.mark.stress] * (name in SECOND)) for name in watched.ARCHITECTURES],
)
def test_an_interrupted_run_writes_what_an_undisturbed_one_does(
    interrupted: dict[str, Future[tuple[Path, Path]]], interrupted_name: str
) -> None:
    run, clean = interrupted[interrupted_name].result()
    assert_same_streams(run, clean)
    assert runs.health(clean) or interrupted_name != "tilelli"
    launches = [launch["resumed_from"] for launch in runs.launches(run)]
    assert launches == [None, "resume-000004.ckpt", "resume-000005.ckpt"]


@pytest.mark.stress
@pytest.mark.parametrize("architecture", watched.ARCHITECTURES)
def test_many_interruptions_at_random_steps(
    application: Application, tmp_path: Path, architecture: str
) -> None:
    seed = int(os.environ.get("SEED", time.time_ns()))
    draw = random.Random(seed)
    steps = {"trainer__max_steps": 40, "trainer__val_check_interval": 6, "checkpoint_every_n_steps": 3}
    config = configured(architecture, tmp_path, **steps)
    at = [draw.randint(5, 9)]
    while at[-1] < 36:  # beyond the newest checkpoint, so that there is always something to resume
        at.append(at[-1] + draw.randint(1, 8))
    faulted = [
        draw.choice((faults.kill_at("step", step), faults.signal_at("step", signal.SIGTERM, step)))
        for step in at
        if step <= 40
    ]
    print(f"seed {seed}: interrupted at {at}")
    clean = fit_with(application, config, tmp_path / "clean", [])
    assert_same_streams(fit_with(application, config, tmp_path / "run", faulted), clean)
