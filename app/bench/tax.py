"""What a step costs beyond its own computation: in a plain loop, in the framework alone, in the whole application."""

import math
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from app.bench.steps import N_BATCHES, BareStep, Batch, Subject
from app.bench.timing import MIN_WINDOWS, Call, Marks, Timing, measure
from app.bench.trainers import bare_trainer, loader, silent
from app.run import arguments, launching
from app.run.signals import StopRequests
from app.training.command_line import RunCLI
from app.training.run_callbacks.graphed_steps import GraphedSteps
from app.training.run_callbacks.step_keys import StepKeys
from app.training.run_callbacks.stopping import StopRun
from app.training.session import Session

#: seconds of steps that a window holds at least
WINDOW_SECONDS = 0.3
#: windows before those that count: capture, first logged step, first files
WARM_UP_WINDOWS = 2
SEED = 11


@dataclass(frozen=True)
class Row:
    """A loop around a step, and the bare loop of the same step between its windows.

    Attributes:
        loop: the loop, in words.
        path: ``eager`` or ``graphed``.
        timing: of a step.
        bare: of a step in the bare loop, in as many windows.
    """

    loop: str
    path: str
    timing: Timing
    bare: Timing

    @property
    def taxes(self) -> list[float]:
        """Seconds of a step beyond a bare one, window by window."""
        pairs = zip(self.timing.windows, self.bare.windows, strict=True)
        return [whole - bare for whole, bare in pairs]

    @property
    def tax(self) -> float:
        """Their median."""
        return statistics.median(self.taxes)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "loop": self.loop,
            "path": self.path,
            "tax_seconds": self.tax,
            "taxes_seconds": self.taxes,
            "bare": self.bare.as_dict(),
        } | self.timing.as_dict()


class Alternation(Callback):
    """Puts a window of bare steps behind each window of a training, so that both meet whatever else the machine does.

    Args:
        bare: makes a bare step.
        n_steps: of a window.
        device: where both compute.
    """

    def __init__(self, bare: Call, n_steps: int, device: torch.device):
        self._bare, self._n_steps = bare, n_steps
        self._marks = Marks(device)
        self._marks.set()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """At the end of a window makes a bare one."""
        if not outputs["record"].is_last_micro or trainer.global_step % self._n_steps:
            return
        self._marks.set()
        for number in range(self._n_steps):
            self._bare(number)
        self._marks.set()

    def row(self, loop: str, path: str) -> Row:
        """What the windows took, those of the beginning left out."""
        seconds = [each / self._n_steps for each in self._marks.seconds()[2 * WARM_UP_WINDOWS :]]
        return Row(loop, path, Timing(tuple(seconds[::2])), Timing(tuple(seconds[1::2])))


def times(subject: Subject, path: str, n_windows: int, quick: bool = False) -> list[Row]:
    """Times the same steps on the same batches in a plain loop, in the framework's and in the application.

    A window ends with a logged step and holds whole intervals of logging. Validation is left out. A checkpoint that
    falls into a window shows in the spread, and in the median only where it falls into half of them.

    Args:
        subject: a configuration whose data is here.
        path: ``eager`` or ``graphed``.
        n_windows: of each loop.
        quick: the shortest windows that there are.

    Raises:
        ConfigurationError: the data is not here.
    """
    data = subject.cli.build_data()
    subject.vocab_size = data.vocab_size
    batches = [_on(subject.device, data.training_batch(number, 0)) for number in range(N_BATCHES)]
    step = BareStep(subject, batches)
    call: Call = step.graphed if path == "graphed" else step.eager
    n_steps = subject.cli.config["trainer"]["log_every_n_steps"]
    if not quick:
        seconds = measure({"step": call}, subject.device, MIN_WINDOWS)["step"].median
        n_steps *= math.ceil(WINDOW_SECONDS / (n_steps * seconds))
    n_all = n_steps * (WARM_UP_WINDOWS + n_windows)
    rows = []
    for loop, run in (("Trainer(barebones=True)", _barebones), ("application", _application)):
        beside = Alternation(call, n_steps, subject.device)
        run(subject, path, batches, beside, n_all)
        rows.append(beside.row(loop, path))
    return rows


def _on(device: torch.device, batch: Batch) -> Batch:
    return batch[0].to(device), batch[1].to(device)


def _barebones(subject: Subject, path: str, batches: Sequence[Batch], beside: Callback, n_steps: int) -> None:
    """Lightning's own loop, with the application's module in it and its graphs, and nothing else."""
    callbacks = [StepKeys(SEED), *([GraphedSteps()] if path == "graphed" else []), beside]
    trainer = bare_trainer(subject, n_steps, callbacks, barebones=True)
    # It has set this to 0, by which the module divides.
    trainer.log_every_n_steps = n_steps  # type: ignore[attr-defined]
    with silent():
        trainer.fit(subject.module(), train_dataloaders=loader(batches, n_steps))


def _application(
    subject: Subject, path: str, batches: Sequence[Batch], beside: Callback, n_steps: int
) -> None:
    """A launch of ``app fit``, with its watchers, files, logs and checkpoints, in a folder that is then removed."""
    with tempfile.TemporaryDirectory() as folder, silent(), StopRequests.of_this_process() as requests:
        options = {
            "run_dir": Path(folder) / "run",
            "trainer.max_steps": n_steps,
            "trainer.limit_val_batches": 0,
            "graph": str(path == "graphed").lower(),
        }
        words = [*subject.words, *(word for name, x in options.items() for word in (f"--{name}", str(x)))]
        launch = arguments.read(words)
        launched = launching.make(launch)
        try:
            cli = RunCLI(launch, launched.files)
            session = Session(cli, cli.build_data(), launched, requests, words)
            session.prepare()
            assert session.trainer is not None
            session.trainer.callbacks.append(beside)  # type: ignore[attr-defined]
            session.fit()
        except StopRun as stop:  # by a signal, which ends the measurement too
            raise SystemExit(int(stop.exit_code)) from stop
        finally:
            launched.close()
