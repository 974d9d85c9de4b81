"""From configuration files and a command line to model, data and trainer."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace, set_loader, set_parsing_settings
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment

from app.run import arguments
from app.run.arguments import Launch
from app.run.configuration import ConfigFile, strict_load
from app.run.errors import ConfigurationError, DataError
from app.training import config_problems
from app.training.distributed import SupervisedDDPStrategy
from app.training.language_model import LanguageModelModule
from app.training.loops import install
from app.training.quiet import quiet

#: import paths that a configuration may name; everything else is refused before it is imported
IMPORTABLE = (
    "app",
    "callbacks",
    "datamodules",
    *(
        f"{prefix}{name}"
        for prefixes, name in (
            (
                ("lightning.pytorch.callbacks.", "lightning.pytorch.callbacks.lr_monitor."),
                "LearningRateMonitor",
            ),
            (
                ("lightning.pytorch.callbacks.", "lightning.pytorch.callbacks.early_stopping."),
                "EarlyStopping",
            ),
            (("lightning.pytorch.callbacks.", "lightning.pytorch.callbacks.timer."), "Timer"),
            (
                ("lightning.pytorch.callbacks.", "lightning.pytorch.callbacks.device_stats_monitor."),
                "DeviceStatsMonitor",
            ),
        )
        for prefix in prefixes
    ),
)

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
    "enable_autolog_hparams": "the configuration is kept as config.yaml",
    "enable_model_summary": "the parameters are printed at start",
    "fast_dev_run": "use a small trainer.max_steps",
    "barebones": "it switches off what a run keeps",
}


class RunParser(LightningArgumentParser):
    """A parser whose errors are ours."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raises; inside a union the framework's own error lets the next member be tried."""
        if not self.exit_on_error:
            return super().error(message, ex)
        raise ConfigurationError(message) from ex


class RunCLI(LightningCLI):
    """Parses one command's configuration; building is a second step, so that its errors are told apart.

    Args:
        launch: the command line.
        files: configuration files, in order.

    Raises:
        ConfigurationError: all unknown keys, wrong types and values out of range, together.
    """

    def __init__(self, launch: Launch, files: Sequence[ConfigFile]):
        self.launch = launch
        self.files = files
        self._given = config_problems.settings(files, launch)
        allow_imports(launch.trust_imports)
        words = [word for file in files for word in ("--config", str(file.path))] + launch.overrides
        super().__init__(
            model_class=LanguageModelModule,
            datamodule_class=LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=False,
            trainer_defaults=TRAINER_DEFAULTS,
            parser_class=RunParser,
            parser_kwargs={
                "allow_abbrev": False,
                "prog": "app fit",
                "usage": "app fit --config NAME_OR_FILE [--config OVERLAY …] [options]",
                "description": "Trains a network. Options come from YAML files, left to right, then from the command "
                "line. --model.help CLASS and --data.help CLASS list what a class takes.",
            },
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=words if not launch.wants_help else _help_words(launch),
            run=False,
        )

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the options of a run."""
        parser.add_argument(
            "--seed", type=int, default=1337, help="initialisation, data order and dropout (>= 0)"
        )
        parser.add_argument(
            "--checkpoint_every_n_steps",
            type=int,
            default=250,
            help="optimizer steps between checkpoints (>= 1)",
        )
        for flag, text in (
            ("run_dir", "folder of the run; by default runs/<configuration>/<time>"),
            ("resume", "go on with a run: its folder, one of its checkpoints, or 'auto' with --run_dir"),
            ("init_from", "take the weights of a run or checkpoint, and nothing else"),
            ("trust_imports", "let configurations import from this package of yours"),
        ):
            parser.add_argument(f"--{flag}", type=str | None, default=None, help=text)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Hands the data's vocabulary and block size to the model."""
        for name in ("vocab_size", "block_size"):
            parser.link_arguments(
                "data", f"model.init_args.{name}", compute_fn=_linked, apply_on="instantiate"
            )
        parser.link_arguments("seed", "data.init_args.seed")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses; after a refusal, looks for everything that is wrong."""
        set_loader("yaml", strict_load, exceptions=_yaml_errors())
        try:
            self.config = parser.parse_args(args)
        except ConfigurationError as error:
            raise config_problems.find(parser, self.files, self.launch, str(error)) from error
        problems = self._range_problems(self.config)
        if problems:
            raise ConfigurationError(problems)

    def _range_problems(self, config: Namespace) -> list[str]:
        origins = {s.key: s.origin for s in self._given}

        def located(key: str, message: str) -> str:
            return f"{key} ({origins[key]}): {message}" if key in origins else f"{key}: {message}"

        found = []
        trainer = config.trainer
        defaults = self.parser.get_defaults()["trainer"]
        for name, remedy in REFUSED.items():
            if f"trainer.{name}" in origins and trainer[name] != defaults[name]:
                found.append(located(f"trainer.{name}", f"{trainer[name]!r} is not used here; {remedy}"))
        for key, value, low in (
            ("trainer.max_steps", trainer.max_steps, 1),
            ("trainer.log_every_n_steps", trainer.log_every_n_steps, 1),
            ("trainer.accumulate_grad_batches", trainer.accumulate_grad_batches, 1),
            ("checkpoint_every_n_steps", config.checkpoint_every_n_steps, 1),
            ("seed", config.seed, 0),
        ):
            if value < low:
                found.append(located(key, f"{value} is out of range; it must be {low} or more"))
        interval = trainer.val_check_interval
        if not isinstance(interval, int) or interval < 1:
            found.append(
                located(
                    "trainer.val_check_interval",
                    f"{interval!r} must be a whole number of optimizer steps, >= 1",
                )
            )
        if trainer.precision in ("16-mixed", "16", 16, "16-true"):
            found.append(
                located("trainer.precision", f"{trainer.precision!r} has too small a range; use bf16-mixed")
            )
        for section in ("model", "data"):
            chosen = config[section]
            class_type = _imported(chosen.class_path)
            arguments = {k: v for k, v in chosen.init_args.as_dict().items() if v is not None}
            for problem in class_type.problems(**arguments):
                name, _, text = problem.partition(": ")
                found.append(located(f"{section}.init_args.{name}", text))
        return found

    def _set_seed(self) -> None:
        """Nothing: the run seeds its own generators."""

    def instantiate_classes(self) -> None:
        """Nothing yet: :meth:`build` does it when the run directory is there."""

    def build_data(self) -> Any:
        """The data module alone, its text read and checked, before any network exists."""
        section = self.config["data"]
        data = _imported(section.class_path)(**section.init_args.as_dict())
        try:
            data.check_source()
        except DataError as error:
            origins = {
                s.path[-1]: f"{s.key} ({s.origin})"
                for s in self._given
                if s.path[:2] == ("data", "init_args")
            }
            named = origins.get("path") or origins.get("source") or "data"
            raise DataError(f"{named}: {problem}" for problem in error.problems) from error
        self._check_linked(data)
        return data

    def _check_linked(self, data: Any) -> None:
        problems = []
        for setting in self._given:
            name = str(setting.path[-1])
            if setting.path[:2] == ("model", "init_args") and name in ("vocab_size", "block_size"):
                value = getattr(data, name)
                if setting.value not in (None, value):
                    problems.append(
                        f"{setting.key} ({setting.origin}): {setting.value} differs from the data's {value}; leave it "
                        "out, the data decides it"
                    )
        if problems:
            raise ConfigurationError(problems)

    def build_model(self, data: Any) -> LanguageModelModule:
        """The module, with the data's vocabulary and block size where it takes them."""
        section = self.config["model"]
        class_type = _imported(section.class_path)
        arguments = {
            name: value
            for name, value in section.init_args.as_dict().items()
            if name not in ("vocab_size", "block_size")
        }
        accepted = config_problems.constructor_arguments(class_type)
        for name in ("vocab_size", "block_size"):
            if name in accepted:
                arguments[name] = getattr(data, name)
        try:
            model = class_type(**arguments)
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"model ({section.class_path}): {error}") from error
        assert isinstance(model, LanguageModelModule)
        return model

    def build_trainer(
        self,
        callbacks: list[Callback],
        plugins: list[Any],
        loggers: list[Logger],
        root: Path,
        with_watchers: bool = True,
    ) -> Trainer:
        """The trainer, on one endless stream of steps.

        Args:
            callbacks: ours; they come after the watchers that the configuration names.
            plugins: ours, checkpoint files among them.
            loggers: ours.
            root: folder for whatever the framework still writes by itself.
            with_watchers: whether the callbacks that the configuration names come too.
        """
        parser = RunParser()
        parser.add_class_arguments(Trainer, "trainer", instantiate=False, sub_configs=True)
        configured = self.config["trainer"].as_dict()
        if not with_watchers:
            configured |= {"callbacks": None, "enable_progress_bar": False}
        arguments = parser.instantiate(parser.parse_object({"trainer": configured}))["trainer"].as_dict()
        watchers = arguments.pop("callbacks") or []
        own = [watchers] if isinstance(watchers, Callback) else list(watchers)
        arguments["plugins"] = [*plugins, *self._environment()]
        if arguments["strategy"] == "ddp" or (arguments["strategy"] == "auto" and is_distributed(arguments)):
            arguments["strategy"] = SupervisedDDPStrategy()
        quiet()
        trainer = Trainer(
            **arguments | {"callbacks": [*own, *callbacks], "logger": loggers, "default_root_dir": root}
        )
        install(trainer)
        return trainer

    @staticmethod
    def _environment() -> list[Any]:
        """Under SLURM: no requeue by the framework, whose own checkpoint would be loaded by itself."""
        return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []


def is_distributed(trainer_arguments: Mapping[str, Any]) -> bool:
    """Whether these trainer arguments ask for more than one process."""
    devices = trainer_arguments["devices"]
    if trainer_arguments["num_nodes"] > 1:
        return True
    return (isinstance(devices, int) and devices > 1) or (isinstance(devices, list) and len(devices) > 1)


def allow_imports(trusted: Sequence[str]) -> None:
    """Restricts what a configuration may import to :data:`IMPORTABLE` and the user's own prefixes."""
    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=[*IMPORTABLE, *trusted],
        config_read_mode_fsspec_enabled=False,
        config_read_mode_urls_enabled=False,
    )
    if trusted and "" not in sys.path:
        sys.path.insert(0, "")


def describe_network(network: Any) -> str:
    """Class, parameters, and how many of them are matrices, on one line."""
    total = sum(parameter.numel() for parameter in network.parameters())
    matrices = sum(
        p.numel() for group in network.parameter_groups() if group["decay"] for p in group["params"]
    )
    return f"{type(network).__name__}, {total:,} parameters ({matrices:,} in matrices)"


def _help_words(launch: Launch) -> list[str]:
    """``--help``, or the help of one class where that was asked for."""
    return [word for word in launch.overrides if arguments.asks_for_class_help(word)] or ["--help"]


def _imported(class_path: str) -> Any:
    """A class whose path the parser has accepted and imported."""
    module, _, name = class_path.rpartition(".")
    return getattr(sys.modules[module], name)


def _linked(data: Any) -> Any:
    """Stands for a value that :meth:`RunCLI.build_model` takes from the data module."""
    return data


def _yaml_errors() -> tuple[type[Exception], ...]:
    import yaml

    return (yaml.YAMLError,)
