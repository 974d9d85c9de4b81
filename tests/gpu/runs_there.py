"""Shipped configurations as runs on a GPU: short ones, and whole commands whose time is taken."""

import csv
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import runs
from tests.support.application import REPOSITORY, Application, Ended

#: says what a test has measured, see the fixture ``figure``
Figure = Callable[[str], None]

N_STEPS = 60
#: one of each architecture, and tokens of a window
SHIPPED = {
    "gpt_char": 128, "tilelli_banks4": 128, "equilibrium_char": 128, "crystal_lowrank16": 256, "local_gpt_sigmoid": 256,
}  # fmt: skip


def needs(n_gpus: int) -> list[pytest.MarkDecorator]:
    """The marks of a file whose tests start runs on so many GPUs."""
    return [
        pytest.mark.process,
        pytest.mark.stress,
        pytest.mark.skipif(torch.cuda.device_count() < n_gpus, reason=f"GPUs needed: {n_gpus}"),
        pytest.mark.timeout(900),
    ]


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


def fit(
    application: Application, run: Path, *given: Any, code: int = 0, timeout: float = 240, **options: Any
) -> Ended:
    """One launch into a run directory, gone on with where it is there."""
    ended = application.run(
        *given, "--run_dir", run, "--resume", "auto", cwd=run.parent, timeout=timeout, **options
    )
    assert ended.code == code, ended
    return ended


def summary(run: Path) -> dict[str, Any]:
    """The final figures of a run whose steps were replayed, as they have to be."""
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    assert found["launch/graph_off"] is None
    assert found["launch/replayed_micro_batches"] > 0
    return found


def column(run: Path, key: str) -> list[float]:
    """What a run has logged under a key, in the order of steps."""
    with (run / "metrics.csv").open(newline="") as file:
        return [float(row[key]) for row in csv.DictReader(file) if row.get(key)]


@dataclass(frozen=True)
class Timed:
    """A whole command, as somebody types it.

    Attributes:
        first_step: seconds to the line of its first step.
        whole: seconds to its end.
        out: what it printed.
    """

    first_step: float
    whole: float
    out: str

    @property
    def path(self) -> str:
        """How its steps were made, in its own words."""
        return next(line.split(maxsplit=1)[1] for line in self.out.splitlines() if line.startswith("path "))


def timed(given: Sequence[Any], cwd: Path, env: Mapping[str, str] | None = None) -> Timed:
    """Runs a command in a process of its own, with the threads that it takes by itself."""
    usual = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    began, first_step, lines = time.monotonic(), 0.0, []
    with (cwd / "stderr.txt").open("w+") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", *map(str, given)],
            cwd=cwd,
            env=usual | {"PYTHONPATH": str(REPOSITORY)} | dict(env or {}),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if not first_step and line.startswith("step "):
                first_step = time.monotonic() - began
        code, whole = process.wait(), time.monotonic() - began
        stderr.seek(0)
        assert code == 0, "".join(lines) + stderr.read()
    return Timed(first_step, whole, "".join(lines))


def printed(application: Application, file: Path, *given: Any) -> Path:
    """What a configuration and options come to, as a file for ``app fit`` and ``app bench``."""
    ended = application.run("fit", "--config", *given, "--print_config", cwd=file.parent)
    assert ended.code == 0, ended
    file.write_text(ended.out)
    return file


def bench(application: Application, folder: Path, *given: Any) -> dict[str, Any]:
    """What ``app bench`` finds on the GPU."""
    file = folder / "bench.json"
    ended = application.run("bench", *given, "--device", "cuda", "--json", file, cwd=folder, timeout=600)
    assert ended.code == 0, ended
    print(ended.out)
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def against(measured: float, target: float, is_least: bool = False) -> str:
    """How a figure stands to its target, which it may not exceed, or has to reach."""
    is_met = measured >= target if is_least else measured <= target
    return f"{'met' if is_met else 'MISSED'}: {'>=' if is_least else '<='} {target:,g}"


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the ratios of windows that were taken in turn."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


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
