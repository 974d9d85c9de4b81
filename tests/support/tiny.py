"""The smallest runs that still have everything a run has."""

import random
from pathlib import Path
from typing import Any

import yaml

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "seven",
    "wizards",
    "box",
    "with",
    "glowing",
    "queens",
]


def write_text(path: Path, n_words: int = 4000, seed: int = 0) -> Path:
    """Sentences of a few words in random order."""
    draw = random.Random(seed)
    lines = [" ".join(draw.choices(WORDS, k=draw.randint(4, 9))) for _ in range(n_words // 6)]
    path.write_text(".\n".join(lines) + ".\n")
    return path


def tilelli(text: Path, **changes: Any) -> dict[str, Any]:
    """Two banked layers with dropout, every watcher, a checkpoint every ten steps."""
    return changed(
        {
            "seed": 7,
            "checkpoint_every_n_steps": 10,
            "model": {
                "class_path": "app.training.TilelliModule",
                "init_args": {
                    "d_model": 16,
                    "n_layers": 2,
                    "n_banks": 2,
                    "d_head": 8,
                    "kernel_size": 3,
                    "wide_kernel_size": 7,
                    "dropout": 0.1,
                    "learning_rate": 3e-3,
                    "warmup_steps": 5,
                },
            },
            "data": {
                "class_path": "datamodules.CharDataModule",
                "init_args": {
                    "path": str(text),
                    "block_size": 16,
                    "batch_size": 4,
                    "num_workers": 0,
                    "val_fraction": 0.02,
                },
            },
            "trainer": {
                "accelerator": "cpu",
                "max_steps": 40,
                "val_check_interval": 20,
                "log_every_n_steps": 5,
                "callbacks": [
                    {"class_path": "callbacks.BankBalance"},
                    {"class_path": "callbacks.RouteFractions"},
                    {"class_path": "callbacks.TernaryHealth"},
                    {"class_path": "callbacks.GammaTrajectory", "init_args": {"every_n_steps": 7}},
                    # Limits at which this healthy network has something to say.
                    {
                        "class_path": "callbacks.RunHealth",
                        "init_args": {
                            "dead_steps": 10,
                            "max_share": 0.51,
                            "still_steps": 5,
                            "min_entropy": 0.49,
                        },
                    },
                    {"class_path": "callbacks.DepthTimeFigures"},
                    {"class_path": "callbacks.Throughput"},
                    {"class_path": "callbacks.TextSamples", "init_args": {"max_new_tokens": 4}},
                ],
            },
        },
        changes,
    )


def gpt(text: Path, **changes: Any) -> dict[str, Any]:
    """The same for the baseline."""
    configuration = tilelli(text)
    configuration["model"] = {
        "class_path": "app.training.GPTModule",
        "init_args": {
            "d_model": 16,
            "n_layers": 2,
            "n_heads": 2,
            "dropout": 0.1,
            "learning_rate": 3e-3,
            "warmup_steps": 5,
        },
    }
    configuration["trainer"]["callbacks"] = [{"class_path": "callbacks.Throughput"}]
    return changed(configuration, changes)


def changed(configuration: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A configuration with values replaced; dots in a key are written as double underscores."""
    for key, value in changes.items():
        node = configuration
        *above, last = key.split("__")
        for name in above:
            node = node.setdefault(name, {})
        node[last] = value
    return configuration


def write(path: Path, configuration: dict[str, Any]) -> Path:
    """Writes a configuration file."""
    path.write_text(yaml.safe_dump(configuration, sort_keys=False))
    return path
