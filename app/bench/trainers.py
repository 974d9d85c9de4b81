"""Trainings for a measurement or a check: the application's loops with nothing that watches, and without a word."""

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader

from app.bench.steps import Batch, Subject
from app.training.framework_output import silence_framework
from app.training.lightning_seams import install


def loader(batches: Sequence[Batch], n: int) -> DataLoader:
    """What a trainer takes n batches from, which take turns; of a plain list it would make a loader of each batch."""
    return DataLoader([batches[i % len(batches)] for i in range(n)], batch_size=None)  # type: ignore[arg-type]


def bare_trainer(subject: Subject, n_steps: int, callbacks: list[Callback], **options: Any) -> Trainer:
    """A trainer with the application's loops and nothing that watches or keeps.

    Args:
        subject: says where it computes, and in which precision.
        n_steps: of the run, for which batches have to be there.
        callbacks: all of them.
        options: others of the trainer.
    """
    silence_framework()
    on_gpu = subject.device.type == "cuda"
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices=[subject.device.index or 0] if on_gpu else 1,
        precision=subject.precision,
        max_steps=n_steps,
        max_epochs=-1,
        callbacks=callbacks,
        use_distributed_sampler=False,
        **(options or quiet | {"limit_val_batches": 0, "log_every_n_steps": n_steps}),
    )
    install(trainer)
    return trainer


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """For the time of a ``with`` block, nothing is printed."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield
