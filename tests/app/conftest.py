"""Fixtures of the tests that run the application."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import faults, tiny
from tests.support.application import Application
from tests.support.browser import Browser
from tests.support.tiny import write_text


@pytest.fixture(scope="session")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    """One warm server for all tests."""
    server = Application(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium; for tests that are skipped where there is none."""
    with Browser(tmp_path_factory.mktemp("chromium")) as made:
        yield made


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A small text that a tiny network can learn something from."""
    return write_text(tmp_path / "text.txt")


@dataclass(frozen=True)
class Reference:
    """A run with everything, made once; to be read or copied, never changed.

    Attributes:
        config: two banked layers, dropout, two micro-batches, every watcher, 40 steps.
        clean: run from the first to the last step.
        broken: the same, killed at step 36; its checkpoints are of steps 20 and 30.
        baseline: a finished run of the baseline network, 20 steps.
        baseline_config: its configuration.
    """

    config: Path
    clean: Path
    broken: Path
    baseline: Path
    baseline_config: Path


@pytest.fixture(scope="session")
def reference(application: Application, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """The runs that most tests compare with."""
    folder = tmp_path_factory.mktemp("reference")
    text = write_text(folder / "text.txt")
    made = Reference(
        config=tiny.write(
            folder / "reference.yaml",
            tiny.tilelli(text, trainer__accumulate_grad_batches=2, model__init_args__pathways=3),
        ),
        clean=folder / "clean",
        broken=folder / "broken",
        baseline=folder / "baseline",
        baseline_config=tiny.write(
            folder / "baseline.yaml",
            tiny.gpt(
                text,
                checkpoint_every_n_steps=5,
                trainer__max_steps=20,
                trainer__val_check_interval=10,
                trainer__limit_val_batches=1.0,
            ),
        ),
    )
    killed = application.start(
        "fit",
        "--config",
        made.config,
        "--run_dir",
        made.broken,
        cwd=folder,
        prelude=faults.kill_at("step", 36),
    )
    application.fit(made.config, made.clean)
    application.fit(made.baseline_config, made.baseline)
    assert killed.wait().code == -9, killed.output()
    return made
