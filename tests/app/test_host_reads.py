"""No step waits for the host to read a value: reads happen where something is logged, and nowhere else."""

import json
from pathlib import Path

import pytest

from tests.support import tiny
from tests.support.application import Application

pytestmark = pytest.mark.process

# Counts, over the whole command, how often a tensor's value was asked for.
COUNTER = """
import atexit, json
from torch.utils._python_dispatch import TorchDispatchMode
import app.training.session as session
class Counter(TorchDispatchMode):
    reads = 0
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "_local_scalar_dense" in str(function) or "is_nonzero" in str(function) or "nonzero" in str(function):
            Counter.reads += 1
        return function(*args, **(kwargs or {}))
fit = session.Session.fit
def counted(self):
    with Counter():
        fit(self)
    with open("reads.json", "w") as file:
        json.dump(Counter.reads, file)
session.Session.fit = counted
"""


def reads(application: Application, folder: Path, text: Path, steps: int) -> int:
    """Host reads of a run that logs and saves at its first and last step only."""
    folder.mkdir()
    config = tiny.tilelli(
        text,
        checkpoint_every_n_steps=10_000,
        trainer__max_steps=steps,
        trainer__val_check_interval=10_000,
        trainer__log_every_n_steps=10_000,
        trainer__accumulate_grad_batches=2,
    )
    application.fit(tiny.write(folder / "a.yaml", config), folder / "run", prelude=COUNTER)
    return json.loads((folder / "reads.json").read_text())


@pytest.mark.stress
def test_more_steps_between_two_logged_ones_read_no_more(
    application: Application, tmp_path: Path, text: Path
) -> None:
    few = reads(application, tmp_path / "few", text, steps=5)
    many = reads(application, tmp_path / "many", text, steps=25)
    assert few > 0, "the counter counts nothing"
    assert many == few
