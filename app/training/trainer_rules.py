"""What a configuration may ask of the trainer, and how it is asked for."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch.plugins.environments import (
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from app.run.errors import ConfigurationError
from app.training.distributed import SupervisedDDPStrategy

TRAINER_DEFAULTS: dict[str, Any] = {
    "accelerator": "auto",
    "devices": 1,
    "max_epochs": -1,
    "val_check_interval": 250,
    "check_val_every_n_epoch": None,
    "log_every_n_steps": 10,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": True,
    "enable_autolog_hparams": False,
    "logger": False,
}

#: trainer arguments that contradict one endless stream of steps, with what to use instead
REFUSED = {
    "max_epochs": "training is one endless stream; trainer.max_steps is its only length",
    "min_epochs": "training is one endless stream; trainer.max_steps is its only length",
    "min_steps": "trainer.max_steps is the only length",
    "max_time": "trainer.max_steps is the only length; stop a run with a signal and go on with --resume",
    "limit_train_batches": "trainer.max_steps is the only length",
    "overfit_batches": "use data.init_args.repeat_windows to train on a few windows again and again",
    "check_val_every_n_epoch": "there are no epochs; set trainer.val_check_interval in optimizer steps",
    "num_sanity_val_steps": "a resumed run would draw other numbers; validate early with val_check_interval",
    "use_distributed_sampler": "the data module divides every batch among the ranks itself",
    "enable_checkpointing": "checkpoints are always kept; set checkpoint_every_n_steps",
    "gradient_clip_val": "the module clips; set model.init_args.gradient_clip",
    "gradient_clip_algorithm": "the module clips by global norm; set model.init_args.gradient_clip",
    "reload_dataloaders_every_n_epochs": "there are no epochs",
    "default_root_dir": "use --run_dir",
    "logger": "metrics go to the run directory, for TensorBoard and as metrics.csv",
    "plugins": "checkpoint files and cluster environment are the application's",
    "enable_autolog_hparams": "the configuration is kept as config.yaml",
    "enable_model_summary": "the parameters are printed at start",
    "fast_dev_run": "use a small trainer.max_steps",
    "barebones": "it switches off what a run keeps",
}


def problems(trainer: Namespace, defaults: Namespace) -> Iterator[tuple[str, str]]:
    """Name and message of every trainer argument that is refused or out of range.

    Args:
        trainer: the parsed section.
        defaults: the same section where nothing is set.
    """
    for name, remedy in REFUSED.items():
        if trainer[name] != defaults[name]:
            yield name, f"{trainer[name]!r} is not used here; {remedy}"
    for name in ("max_steps", "log_every_n_steps", "accumulate_grad_batches"):
        if trainer[name] is None or trainer[name] < 1:
            yield name, f"{trainer[name]} is out of range; it must be 1 or more"
    interval = trainer["val_check_interval"]
    if not isinstance(interval, int) or interval < 1:
        yield "val_check_interval", f"{interval!r} must be a whole number of optimizer steps, >= 1"
    if trainer["precision"] in ("16-mixed", "16", 16, "16-true"):
        yield "precision", f"{trainer['precision']!r} has too small a range; use bf16-mixed"
    strategy = trainer["strategy"]
    named = strategy.get("class_path", "") if isinstance(strategy, Namespace) else str(strategy)
    if named not in ("auto", "ddp") and not named.endswith(".SupervisedDDPStrategy"):
        yield "strategy", f"{named!r} is not supported; use auto, ddp or app.training.SupervisedDDPStrategy"


def strategy(arguments: Mapping[str, Any]) -> Any:
    """The strategy to train with: ours wherever there is more than one process."""
    chosen = arguments["strategy"]
    return (
        SupervisedDDPStrategy()
        if chosen == "ddp" or (chosen == "auto" and is_distributed(arguments))
        else chosen
    )


def environment() -> list[Any]:
    """Who starts the ranks: torchrun, or the application itself, inside a SLURM job as well.

    The framework's own SLURM environment would requeue jobs and load a checkpoint of its own.

    Raises:
        ConfigurationError: several tasks of a SLURM job step, which do not know of each other.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return [TorchElasticEnvironment()]
    if not SLURMEnvironment.detect():
        return []
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        raise ConfigurationError(
            f"SLURM_NTASKS is {os.environ['SLURM_NTASKS']}: start one task per node, and the processes in it with "
            "torchrun or --trainer.devices"
        )
    return [LightningEnvironment()]


def is_distributed(arguments: Mapping[str, Any]) -> bool:
    """Whether these trainer arguments ask for more than one process."""
    devices = arguments["devices"]
    # From a command line they may come as text: "2", "0,1", "auto".
    text = ",".join(map(str, devices)) if isinstance(devices, list) else str(devices).strip()
    if "," in text:
        n_devices = len([word for word in text.split(",") if word.strip()])
    elif text in ("auto", "-1"):
        on_gpus = arguments["accelerator"] in ("auto", "gpu", "cuda")
        n_devices = torch.cuda.device_count() if on_gpus else 1
    else:
        n_devices = int(text) if text.isdecimal() and not isinstance(devices, list) else 1
    return arguments["num_nodes"] > 1 or n_devices > 1
