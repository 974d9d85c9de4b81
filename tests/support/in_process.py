"""Real fits inside of the test's own process, in milliseconds: for what needs no run directory."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from app.training import LanguageModelModule, lightning_seams
from app.training.run_callbacks.nonfinite import NonFiniteStop
from app.training.run_callbacks.step_keys import StepKeys
from datamodules import CharDataModule
from tests.support import tiny

SEED = 3
BLOCK_SIZE = 8


def fit(
    folder: Path,
    make: Callable[..., LanguageModelModule],
    steps: int = 3,
    callbacks: Sequence[Callback] = (),
    block_size: int = BLOCK_SIZE,
    batch_size: int = 4,
    **trainer_arguments: Any,
) -> LanguageModelModule:
    """Trains on a small text of characters with the step loops, keys and finite gate of a run.

    Args:
        folder: for the text, and whatever is saved.
        make: builds the module from ``vocab_size`` and ``block_size``.
        steps: optimizer steps.
        callbacks: beside those of a run.
        block_size: tokens of a window.
        batch_size: windows of a step.
        trainer_arguments: in place of those below.

    Returns:
        The module; it is the attribute ``module`` of an exception that ended the fit.
    """
    data = CharDataModule(
        path=str(tiny.write_text(folder / "text.txt", 400)),
        block_size=block_size,
        batch_size=batch_size,
        val_fraction=0.02,
    )
    data.setup("fit")
    torch.manual_seed(0)
    module = make(vocab_size=data.vocab_size, block_size=block_size)
    options: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "limit_val_batches": 0}
    options |= {"log_every_n_steps": 1, "logger": False} | trainer_arguments
    trainer = Trainer(
        max_steps=steps,
        max_epochs=-1,
        callbacks=[StepKeys(SEED), NonFiniteStop(SEED, folder), *callbacks],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        **options,
    )
    lightning_seams.install(trainer)
    try:
        trainer.fit(module, datamodule=data)
    except Exception as error:
        error.module = module  # type: ignore[attr-defined]
        raise
    return module
