"""Shipped configurations as short runs on a GPU."""

from pathlib import Path
from typing import Any

import torch

from tests.support import runs
from tests.support.application import Application, Ended

N_STEPS = 60
#: one of each architecture, and tokens of a window
SHIPPED = {
    "gpt_char": 128, "tilelli_banks4": 128, "equilibrium_char": 128, "crystal_lowrank16": 256, "local_gpt_sigmoid": 256,
}  # fmt: skip


def words(name: str, *more: Any, tokens: int = 0, overlay: str = "gpu") -> list[Any]:
    """Of ``app fit``, before the run directory.

    Args:
        name: of a configuration.
        more: at the end.
        tokens: of a step; 0 for those of the configuration.
        overlay: which of ``hardware/…``.
    """
    options: dict[str, Any] = {
        "data.source": "stdlib",
        "trainer.max_steps": N_STEPS,
        "trainer.val_check_interval": 20,
        "trainer.limit_val_batches": 12,
        "checkpoint_every_n_steps": 10,
        "model.warmup_steps": 10,
    }
    if tokens:
        options |= {"data.block_size": SHIPPED[name], "data.batch_size": tokens // SHIPPED[name]}
    given = [word for option, value in options.items() for word in (f"--{option}", value)]
    return ["fit", "--config", name, "--config", f"hardware/{overlay}", *given, *more]


def fit(application: Application, run: Path, *given: Any, code: int = 0, **options: Any) -> Ended:
    """One launch into a run directory, gone on with where it is there."""
    ended = application.run(
        *given, "--run_dir", run, "--resume", "auto", cwd=run.parent, timeout=240, **options
    )
    assert ended.code == code, ended
    return ended


def differing(ours: Path, theirs: Path) -> list[str]:
    """Names of what differs, in any bit, between the weights and moments of two runs."""
    found = []
    one, other = (runs.last_checkpoint(run) for run in (ours, theirs))
    for part in ("state_dict", "optimizer_states"):
        found += runs.differences(one[part], other[part], part)
    return found


def farthest(ours: Path, theirs: Path) -> float:
    """The largest relative difference of any tensor of weights between two runs."""
    one, other = runs.weights(ours), runs.weights(theirs)
    assert one.keys() == other.keys()
    return max(_error(one[name], other[name]) for name in one if one[name].is_floating_point())


def _error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm().clamp(min=1e-30))
