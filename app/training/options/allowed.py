"""What of the framework's own a configuration may name beside ours, and why not the rest.

Class paths are written short (``EarlyStopping``) or in full. Everything here is checked before anything is made,
with the constructors' own rules among it, so that a mistake is one line with its place.

- Files of a ``ModelCheckpoint`` lie in ``checkpoints/lightning/`` of the run, each with its ``.sha256``. The
  application neither resumes from them by itself nor removes them; ``--resume`` and ``--init_from`` take one that is
  named.
- Loggers write beside ours, below ``loggers/`` of the run where their ``save_dir`` is no absolute path. What a resumed
  run makes again is handed to them again; ours alone drop what lies after the resume point.
- A profiler's table is ``fit-profile.txt`` in the run directory, one per rank.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Trainer, callbacks, loggers
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler

from app.options import options_of
from app.run import ranks
from app.run.configuration import nearest
from app.training.config_errors import ConfigErrors

#: import paths that a configuration may name besides ours; the tables below say which of their classes
PACKAGES = ("lightning.pytorch.callbacks", "lightning.pytorch.loggers")
#: what watches or ends a training, and is nothing to an evaluation
OPTIONS = ("callbacks", "logger", "profiler", "max_time")
#: what a configuration may put among the callbacks
CALLBACKS = (
    "DeviceStatsMonitor", "EMAWeightAveraging", "EarlyStopping", "LearningRateMonitor", "ModelCheckpoint", "Timer",
    "WeightAveraging",
)  # fmt: skip
_OUR_BAR = "the run has its own; trainer.enable_progress_bar: false switches it off"
_TABLE = "the parameters are printed at start, and by --dry_run"
_BASE = "it is a base for classes of your own; name yours, with --trust_imports PREFIX"
_FREEZING = (
    "it changes the optimizer's parameters on the way, and a resumed run could not follow; freeze the "
    "parameters in a network of your own"
)
#: and what it may not, with what to do instead
REFUSED_CALLBACKS = {
    "BackboneFinetuning": _FREEZING,
    "BaseFinetuning": _FREEZING,
    "BasePredictionWriter": "there is no prediction; use app generate",
    "BatchSizeFinder": "a batch size that the machine picks makes every machine another run; see app fit --dry_run",
    "Callback": _BASE,
    "Checkpoint": _BASE,
    "GradientAccumulationScheduler": "the data divides each batch once; set trainer.accumulate_grad_batches",
    "LambdaCallback": "a file holds no functions; write a callback, and name it with --trust_imports PREFIX",
    "LearningRateFinder": "it trains and rewinds before the run, which no resume knows of; run a few short fits with "
    "other values of model.init_args.learning_rate",
    "ModelPruning": "its masks rename the weights, which no network here would load; prune an export",
    "ModelSummary": _TABLE,
    "OnExceptionCheckpoint": "a run that is stopped saves by itself, and what fails in the midst of a step is no state "
    "to go on from; set checkpoint_every_n_steps",
    "ProgressBar": _OUR_BAR,
    "RichModelSummary": _TABLE,
    "RichProgressBar": _OUR_BAR,
    "SpikeDetection": "it ends the run by an exception; use model.init_args.nonfinite, and callbacks.RunHealth",
    "StochasticWeightAveraging": "it begins at an epoch and changes the rate, and training is one endless epoch; use "
    "WeightAveraging or EMAWeightAveraging",
    "TQDMProgressBar": _OUR_BAR,
    "ThroughputMonitor": "it needs a function for the batch's length; use callbacks.Throughput",
}
AVERAGES = ("EMAWeightAveraging", "WeightAveraging")
#: what may log beside ours
LOGGERS = ("CSVLogger", "MLFlowLogger", "WandbLogger")
REFUSED_LOGGERS = {
    "CometLogger": "it cannot work without a network; use CSVLogger, MLFlowLogger or WandbLogger",
    "LitLogger": "it cannot work without a network; use CSVLogger, MLFlowLogger or WandbLogger",
    "Logger": _BASE,
    "TensorBoardLogger": "the run directory has TensorBoard's events already",
}
REFUSED = REFUSED_CALLBACKS | REFUSED_LOGGERS
#: packages that do not come with the application
NEEDED = {"DeviceStatsMonitor": "psutil", "MLFlowLogger": "mlflow", "WandbLogger": "wandb"}
_INSTALL = {
    "psutil": "pip install psutil",
    "mlflow": "pip install 'archlab[mlflow]'",
    "wandb": "pip install 'archlab[wandb]'",
}
PROFILERS: Mapping[str, type[Profiler]] = {
    "simple": SimpleProfiler,
    "advanced": AdvancedProfiler,
    "pytorch": PyTorchProfiler,
}
#: objectives that an architecture of ours logs for callbacks; which of them there are depends on the text
OBJECTIVES = (
    "train/loss", "val/loss", "val/bpb", "val/token_perplexity", "val/word_perplexity", "val/unknown_share",
)  # fmt: skip

_NO_EPOCHS = "there are no epochs"
_NO_BUFFERS = "running thresholds and counts are statistics and no weights; leave it out"
#: arguments that cannot be right in one endless epoch: the values that can, and what to do
ARGUMENTS: Mapping[tuple[str, str], tuple[Callable[[Any], bool], str]] = {
    ("EarlyStopping", "check_on_train_epoch_end"): (lambda v: not v, f"{_NO_EPOCHS}; it looks after each validation"),
    ("LearningRateMonitor", "logging_interval"): (lambda v: v != "epoch", f"{_NO_EPOCHS}; use step"),
    ("Timer", "interval"): (lambda v: v != "epoch", f"{_NO_EPOCHS}; use step"),
    ("ModelCheckpoint", "every_n_epochs"): (lambda v: v in (None, 0, 1), f"{_NO_EPOCHS}; use every_n_train_steps"),
    ("ModelCheckpoint", "save_on_train_epoch_end"): (lambda v: not v, f"{_NO_EPOCHS}; it saves after each validation"),
    ("ModelCheckpoint", "save_on_exception"): (lambda v: not v, REFUSED_CALLBACKS["OnExceptionCheckpoint"]),
    ("EMAWeightAveraging", "update_starting_at_epoch"): (
        lambda v: v is None, f"{_NO_EPOCHS}; use update_starting_at_step"
    ),
    ("EMAWeightAveraging", "update_every_n_steps"): (lambda v: v >= 1, "it must be 1 or more"),
    ("EMAWeightAveraging", "use_buffers"): (lambda v: not v, _NO_BUFFERS),
    ("WeightAveraging", "use_buffers"): (lambda v: not v, _NO_BUFFERS),
}  # fmt: skip


def problems(found: ConfigErrors) -> Iterator[tuple[str, str]]:
    """Name and message of everything of the framework's own that cannot be used, not so, or not on this machine.

    Args:
        found: the configuration, looked through.
    """
    trainer = found.values.get(("trainer",), {})
    model = found.classes.get(("model",))
    for where, class_type in found.classes.items():
        if where[0] != "trainer" or class_type is None or not class_type.__module__.startswith("lightning."):
            continue
        name, kind = ".".join(map(str, where[1:])), class_type.__name__
        refusal = REFUSED.get(kind) or (
            "" if kind in (*CALLBACKS, *LOGGERS) else "name one of its public classes"
        )
        if refusal:
            yield f"{name}.class_path", f"{kind} is not used here; {refusal}"
            continue
        package = NEEDED.get(kind)
        if package is not None and importlib.util.find_spec(package) is None:
            yield f"{name}.class_path", f"{kind} needs the package {package}; {_INSTALL[package]}"
        if kind in CALLBACKS:
            arguments, in_doubt = found.values.get(where, {}), found.in_doubt.get(where, set())
            for argument, message in _problems_of(class_type, arguments):
                if not in_doubt:
                    yield f"{name}.{argument}", message
            monitor = arguments.get("monitor")
            if monitor is not None and model is not None and model.__module__.startswith("app.training."):
                message = _problem_of_key(monitor, trainer)
                if message:
                    yield f"{name}.init_args.monitor", message
    if trainer.get("logger") is True:
        yield "logger", "True names no logger; ours always log, name the class of another one"
    if trainer.get("max_time") is not None:
        for _, message in _problems_of(callbacks.Timer, {"duration": trainer["max_time"]}):
            yield "max_time", message
        if callbacks.Timer in found.classes.values():
            yield "max_time", "a Timer among the callbacks says how long too; keep one of the two"


def _problems_of(kind: type, arguments: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What cannot be right here, or else what a constructor has against its arguments."""
    wrong = [
        (f"init_args.{argument}", f"{arguments[argument]!r} is not used here; {remedy}")
        for (of, argument), (is_right, remedy) in ARGUMENTS.items()
        if of == kind.__name__ and argument in arguments and not is_right(arguments[argument])
    ]
    yield from wrong
    needed = [p.name for p in options_of(kind).values() if p.default is p.empty]
    if wrong or not set(needed) <= set(arguments):
        return
    try:
        kind(**arguments)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        message = lines[0] if lines else type(error).__name__
        at_fault = [argument for argument in arguments if argument in message]
        yield f"init_args.{max(at_fault, key=len)}" if at_fault else "class_path", message


def _problem_of_key(monitor: str, trainer: Mapping[str, Any]) -> str:
    """What is wrong with a monitored key; a module of one's own may log others than an architecture of ours."""
    if monitor not in OBJECTIVES:
        meant = nearest(monitor.replace("_", "/", 1), OBJECTIVES)
        known = f"did you mean {meant!r}?" if meant else f"known: {', '.join(OBJECTIVES)}"
        return f"nothing is logged as {monitor!r}; {known}"
    if monitor.startswith("val/") and trainer.get("limit_val_batches") == 0:
        return f"{monitor!r} is never there: trainer.limit_val_batches is 0"
    return ""


def settle(trainer: Namespace) -> None:
    """Makes of the framework's defaults what is done here, and what a file can hold: the configuration that is kept."""
    for entry in _listed(trainer["callbacks"]):
        arguments = entry.get("init_args") or Namespace()
        for name, value in arguments.items():
            if isinstance(value, Enum):
                arguments[name] = value.value
        if _kind_of(entry) in AVERAGES:
            arguments["use_buffers"] = False


def place_callbacks(trainer: dict[str, Any], root: Path) -> None:
    """Sends the files of the framework's callbacks into the run directory.

    Args:
        trainer: the parsed section as plain values, which is changed.
        root: the run directory.
    """
    for entry in _listed(trainer["callbacks"]):
        if _kind_of(entry) == "ModelCheckpoint":
            folder = root / "checkpoints" / "lightning" / (entry["init_args"]["dirpath"] or "")
            entry["init_args"]["dirpath"] = str(folder)


def take_loggers(trainer: dict[str, Any], root: Path) -> tuple[list[Logger], list[tuple[str, str]]]:
    """Makes the framework's loggers, which write below ``loggers/`` of the run directory; rank zero alone has any.

    Args:
        trainer: the parsed section as plain values, from which they are taken.
        root: the run directory.

    Returns:
        The loggers; name and message of those that cannot be made.
    """
    made: list[Logger] = []
    problems = []
    entries = _listed(trainer["logger"])
    for index, entry in enumerate(entries):
        name = f"logger.{index}" if isinstance(trainer["logger"], list) else "logger"
        if not _kind_of(entry) or ranks.number() > 0:
            continue
        folder = (root / "loggers" / (entry["init_args"]["save_dir"] or "")).resolve()
        arguments = entry["init_args"] | entry.get("dict_kwargs", {}) | {"save_dir": str(folder)}
        if _kind_of(entry) == "MLFlowLogger" and arguments["tracking_uri"] is None:
            # The logger's own default is a folder of files, which MLflow (3.17) refuses.
            arguments["tracking_uri"] = f"sqlite:///{folder / 'mlflow.db'}"
            arguments["artifact_location"] = arguments["artifact_location"] or str(folder / "artifacts")
            folder.mkdir(parents=True, exist_ok=True)
        try:
            made.append(getattr(loggers, _kind_of(entry))(**arguments))
        except Exception as error:
            problems.append((f"{name}.class_path", next(iter(str(error).splitlines()), type(error).__name__)))
            continue
        log_dir = made[-1].log_dir
        if log_dir is not None and Path(log_dir).resolve() == root.resolve():
            remedy = "it would write over the run's own files; name another save_dir"
            problems.append((f"{name}.init_args.save_dir", remedy))
    trainer["logger"] = [entry for entry in entries if not _kind_of(entry)] or False
    return made, problems


def profiler(chosen: Any, root: Path) -> Any:
    """The profiler of a name, with its table in the run directory; anything else as it is."""
    return PROFILERS[chosen](dirpath=root, filename="profile") if isinstance(chosen, str) else chosen


def ended_by(trainer: Trainer) -> str:
    """Which of the framework's callbacks has ended a run before its last step, and why; empty if none has."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, callbacks.EarlyStopping) and callback.stopping_reason_message:
            reason = " ".join(callback.stopping_reason_message.split())
            return f"EarlyStopping: {reason.removesuffix(' Signaling Trainer to stop.')}"
        left = callback.time_remaining() if isinstance(callback, callbacks.Timer) else None
        if left is not None and left <= 0:
            return f"Timer: {callback.time_elapsed():,.1f} s of training are over"
    return ""


def lengths(configuration: Mapping[str, Any]) -> list[Any]:
    """What decides, beside ``max_steps``, how long a run with this resolved configuration trains."""
    trainer = configuration["trainer"]
    enders = [e for e in _listed(trainer.get("callbacks")) if _kind_of(e) in ("EarlyStopping", "Timer")]
    return [trainer.get("max_time"), enders]


def _listed(value: Any) -> Sequence[Any]:
    """The classes that a section names, one or several."""
    if isinstance(value, list):
        return value
    return [value] if isinstance(value, Namespace | dict) else []


def _kind_of(entry: Any) -> str:
    """The framework's class that an entry names; empty for any other."""
    path = str(entry.get("class_path", "")) if isinstance(entry, Namespace | dict) else ""
    return path.rpartition(".")[2] if path.startswith(PACKAGES) else ""
