"""Run directories and checkpoints as training leaves them, written by hand."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import yaml


def write_run(
    path: Path,
    *,
    seed: int = 1,
    n_banks: int = 4,
    n_steps: int = 60,
    state: str = "finished",
    level: float = 1.5,
    seconds_per_step: float | None = 0.1,
    tokenizer: str = "char",
    **model: Any,
) -> Path:
    """A run whose losses fall to ``level``; without ``seconds_per_step``, one from before seconds were logged."""
    path.mkdir(parents=True)
    (path / "checkpoints").mkdir()
    configuration = {
        "seed": seed,
        "model": {"class_path": "app.training.TilelliModule", "init_args": {"n_banks": n_banks, **model}},
        "data": {"class_path": "datamodules.CharDataModule", "init_args": {"source": "stdlib"}},
        "trainer": {
            "max_steps": 60,
            "callbacks": [{"class_path": "callbacks.Throughput", "init_args": {"peak_tflops": None}}],
        },
    }
    (path / "config.yaml").write_text(yaml.safe_dump(configuration, sort_keys=False))
    launch = {
        "seed": seed,
        "device": "cpu (1 threads of 2)",
        "packages": {"torch": "2.13.0"},
        "data": {"source": "stdlib", "tokenizer": tokenizer},
    }
    (path / "run.json").write_text(json.dumps({"launches": [launch]}))
    (path / "status.json").write_text(
        json.dumps({"state": state, "step": n_steps, "exit_code": 0, "reason": ""})
    )
    draw = random.Random(seed)
    with (path / "metrics.csv").open("w", newline="") as file:
        columns = ["step", "tokens_seen", "train/loss", "train/bpb", "val/loss", "val/bpb"]
        columns += [] if seconds_per_step is None else ["speed/seconds"]
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        for step in range(2, n_steps + 1, 2):
            loss = level + draw.gauss(0, 0.02) + 2.5 * 0.93**step
            row: dict[str, Any] = {
                "step": step,
                "tokens_seen": 2048.0 * step,
                "train/loss": loss,
                "train/bpb": loss / 0.7,
            }
            if seconds_per_step is not None:
                row["speed/seconds"] = seconds_per_step * step
            table.writerow(row)
            if step % 10 == 0:
                table.writerow({"step": step, "val/loss": loss + 0.1, "val/bpb": (loss + 0.1) / 0.7})
    if state == "finished":
        (path / "summary.json").write_text(json.dumps({"step": n_steps, "parameters": 1000 * n_banks}))
    return path


def checkpoint_content(
    network: dict[str, Any] | None = None, tokenizer: str = "", **state: Any
) -> dict[str, Any]:
    """What a checkpoint of the first step holds; without a network, of one that is never built.

    Args:
        network: its description.
        tokenizer: its hash.
        state: what the run's own state says otherwise.
    """
    return {
        "state_dict": {},
        "archlab": {
            "format": 2,
            "step": 1,
            "windows_seen": 4,
            "validation_pending": False,
            "last_validation": {},
            "network": {"class_path": "app.models.gpt.GPT", "init_args": {}} if network is None else network,
            "optimizer": "adamw",
            "seed": 1,
            "block_size": 16,
            "data": {"tokenizer": tokenizer},
            "configuration": {},
            "place": {},
            **state,
        },
    }
