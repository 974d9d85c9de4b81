"""What a configuration may ask of the trainer, and how it is asked for."""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment

from app.options import PositiveInt, Said, defaults, options_of, shown
from app.run import ranks
from app.run.devices import asked_devices
from app.training.distributed import SupervisedDDPStrategy
from app.training.options.help import meanings
from app.training.sharded import SupervisedFSDPStrategy

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
    "plugins": "checkpoint files and cluster environment are the application's",
    "enable_autolog_hparams": "the configuration is kept as config.yaml",
    "enable_model_summary": "the parameters are printed at start",
    "fast_dev_run": "use a small trainer.max_steps",
    "barebones": "it switches off what a run keeps",
}


#: how several processes train together, by the names that the framework has for it
STRATEGIES = {"ddp": SupervisedDDPStrategy, "fsdp": SupervisedFSDPStrategy}

#: what the options mean that most runs set, in this application
ABOUT = {
    "max_steps": "length in optimizer steps (≥ 1; required)",
    "accelerator": "where to compute (auto|cpu|gpu; auto)",
    "devices": "how many, or which ones as [0, 2] (1)",
    "precision": "of the arithmetic (32-true|bf16-mixed; 32-true)",
    "val_check_interval": "optimizer steps between validations (≥ 1; 250)",
    "limit_val_batches": "batches, or their share, to validate on (1.0)",
    "accumulate_grad_batches": "micro-batches that a step is cut into (≥ 1; 1)",
    "log_every_n_steps": "optimizer steps between logged values (≥ 1; 10)",
    "callbacks": "watchers and others; callbacks+=NAME adds one",
    "logger": "a logger beside those of the run: CSVLogger, WandbLogger, MLFlowLogger",
    "max_time": "longest time of training, DD:HH:MM:SS",
    "profiler": "what takes how long (simple|advanced|pytorch), in fit-profile.txt",
}


def about(name: str) -> str:
    """What a trainer option means: in this application, or as the framework says."""
    if name in ABOUT:
        return ABOUT[name]
    default = (defaults(Trainer) | TRAINER_DEFAULTS)[name]
    text = re.split(r"(?<=\.) |Default:", meanings(Trainer).get(name, ""))[0].strip()
    return text if default is None else f"{text} (default {shown(default)})"


class Devices:
    """What ``trainer.devices`` may be."""

    def demand(self, value: int | str | list[int]) -> str:
        """What a value must be; empty where it is."""
        if (
            isinstance(value, list)
            or value == "auto"
            or re.fullmatch(r"-1|[1-9]\d*|\d+(,\d+)+,?|\d+,", str(value))
        ):
            return ""
        return "must be a number of devices, a list of them as [0, 2], or auto"


#: the first four by name; half precision is understood in order to say what to take instead
Precision = Annotated[
    Literal[
        "32-true", "bf16-mixed", "bf16-true", "64-true", "32", "64", "bf16", 32, 64, "16-mixed", "16-true", "16", 16
    ],
    Said("one of 32-true, bf16-mixed, bf16-true, 64-true"),
]  # fmt: skip


def types() -> dict[str, Any]:
    """Type of every trainer option, ours where the framework allows what makes no sense here."""
    of_framework = {name: p.annotation for name, p in options_of(Trainer).items()}
    return of_framework | {
        "accelerator": Literal["auto", "cpu", "gpu", "cuda", "mps"],
        "devices": Annotated[int | str | list[int], Devices()],
        "precision": Precision,
        "max_steps": PositiveInt,
        "log_every_n_steps": PositiveInt,
        "accumulate_grad_batches": PositiveInt,
        "val_check_interval": PositiveInt,
        "max_time": str | None,
        "profiler": Literal["simple", "advanced", "pytorch"] | None,
    }


def problems(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and message of every trainer option that is refused or does not go with the others.

    Args:
        given: the options that are set.
    """
    trainer = defaults(Trainer) | TRAINER_DEFAULTS | dict(given)
    for name, remedy in REFUSED.items():
        if name in given and given[name] != (defaults(Trainer) | TRAINER_DEFAULTS)[name]:
            yield name, f"{given[name]!r} is not used here; {remedy}"
    if "max_steps" not in given:
        yield "max_steps", "is not set; give the length of the run in optimizer steps"
    if trainer["precision"] in ("16-mixed", "16", 16, "16-true"):
        yield "precision", f"{trainer['precision']!r} has too small a range; use bf16-mixed"
    if trainer["deterministic"] not in (None, True):
        yield (
            "deterministic",
            f"{trainer['deterministic']!r} is not used here; set fast_nondeterministic: true",
        )
    if trainer["benchmark"]:
        yield "benchmark", "kernels chosen by timing make runs differ; leave it out"
    named = str(trainer["strategy"])
    if named not in ("auto", *STRATEGIES) and not named.endswith(
        tuple(f".{x.__name__}" for x in STRATEGIES.values())
    ):
        yield "strategy", f"{named!r} is not supported; use auto, ddp or fsdp"


def strategy(arguments: Mapping[str, Any]) -> Any:
    """The strategy to train with: ours wherever there is more than one process, and none where there is one."""
    chosen = arguments["strategy"]
    if not is_distributed(arguments):
        return "auto"
    return STRATEGIES["ddp" if chosen == "auto" else chosen]() if isinstance(chosen, str) else chosen


def environment() -> list[Any]:
    """Who starts the ranks: torchrun, or the application itself.

    The framework is not left to look for others: under SLURM it would requeue jobs and load a checkpoint of its own.
    """
    return [TorchElasticEnvironment() if ranks.is_torchrun() else LightningEnvironment()]


def device_problems(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and message of the options that ask for devices which this machine, or this launch, does not have.

    Args:
        given: the options that are set.
    """
    trainer = TRAINER_DEFAULTS | dict(given)
    accelerator, devices = trainer["accelerator"], trainer["devices"]
    if (n_nodes := trainer.get("num_nodes", 1)) > 1 and not ranks.is_torchrun():
        yield (
            "num_nodes",
            f"{n_nodes} nodes are asked for; start torchrun on each of them (app/run/README.md)",
        )
    n_gpus = torch.cuda.device_count()
    if accelerator in ("gpu", "cuda") and not n_gpus:
        if accelerator == "cuda" or not torch.backends.mps.is_available():
            yield (
                "accelerator",
                "there is no GPU here; leave it out, or add --trainer.accelerator auto; app doctor says what there is",
            )
        return
    try:
        asked = asked_devices(devices)
    except ValueError:
        yield "devices", f"{devices!r} is no number of devices; write how many, or which ones as [0, 2]"
        return
    here = f"there {'is 1 GPU' if n_gpus == 1 else f'are {n_gpus} GPUs'} here"
    if asked == [] or (isinstance(asked, int) and asked < 1):
        yield "devices", f"{devices!r} is out of range; it must be at least 1, or auto"
    elif accelerator == "cpu" or (accelerator == "auto" and not n_gpus):
        if isinstance(asked, list):
            why = "the CPU has no numbers" if n_gpus else "there is no GPU here"
            yield "devices", f"{asked} numbers GPUs, and {why}; leave it out, or write how many processes"
    elif accelerator in ("auto", "gpu", "cuda") and n_gpus:
        if isinstance(asked, int) and asked > n_gpus:
            yield "devices", f"{asked} are asked for, and {here}; write {n_gpus}, or leave it out for one"
        elif isinstance(asked, list) and not {*asked} <= {*range(n_gpus)}:
            yield "devices", f"{asked}: {here}, numbered from 0; name those, or leave it out for one"


def is_distributed(arguments: Mapping[str, Any]) -> bool:
    """Whether these trainer arguments ask for more than one process."""
    try:
        asked = asked_devices(arguments["devices"])
    except ValueError:  # the framework says what is wrong with it
        asked = 1
    if asked is None:
        on_gpus = arguments["accelerator"] in ("auto", "gpu", "cuda")
        n_devices = torch.cuda.device_count() if on_gpus else 1
    else:
        n_devices = len(asked) if isinstance(asked, list) else asked
    return arguments["num_nodes"] > 1 or n_devices > 1
