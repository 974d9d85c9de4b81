"""From configuration files and a command line to model, data and trainer."""

import inspect
import os
import re
import shlex
import sys
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace, set_loader, set_parsing_settings
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from app.run import arguments
from app.run.arguments import Launch
from app.run.configuration import ConfigFile, strict_load
from app.run.errors import ConfigurationError, DataError
from app.training import config_problems, trainer_rules
from app.training.config_problems import Setting
from app.training.language_model import LanguageModelModule
from app.training.loops import install
from app.training.quiet import quiet
from app.training.stopping import NoSignals

#: import paths that a configuration may name; everything else is refused before it is imported
IMPORTABLE = ("app.training", "callbacks", "datamodules")
#: values that stand for a whole section; their parts would escape the checks of single values
SECTIONS = (("trainer",), ("model",), ("data",), ("model", "init_args"), ("data", "init_args"))


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
            trainer_defaults=trainer_rules.TRAINER_DEFAULTS,
            parser_class=RunParser,
            parser_kwargs={
                "allow_abbrev": False,
                "prog": "app fit",
                "usage": "app fit --config NAME_OR_FILE [--config OVERLAY …] [--dry_run] [options]",
                "description": "Trains a network. Options come from YAML files, left to right, then from the command "
                "line. --dry_run prints parameters, memory and time, and stops. --model.help CLASS and --data.help "
                "CLASS list what a class takes.",
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
        parser.add_argument(
            "--accept_data_change",
            type=bool,
            default=False,
            help="with --resume, go on although the text was changed; it is recorded (stands alone)",
        )

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
        self._refuse_hidden_values()
        try:
            self.config = parser.parse_args(args)
        except ConfigurationError as error:
            problems, wrong = config_problems.find(parser, self.files, self.launch, str(error))
            raise ConfigurationError(problems + self._range_problems_beside(wrong)) from error
        found = [self.located(key, message) for key, message in self._range_problems(self.config)]
        if found:
            raise ConfigurationError(found)

    def _range_problems_beside(self, wrong: Sequence[Setting]) -> list[str]:
        """Range problems of the values that the parser took; a rule that speaks of one it did not take has to wait."""
        config = config_problems.rest(self.parser, self._given, wrong) if wrong else None
        if config is None:
            return []
        in_doubt = config_problems.in_doubt(self.parser, self._given, wrong)
        return [
            self.located(key, message)
            for key, message in self._range_problems(config)
            if in_doubt.isdisjoint(re.findall(r"\w+", f"{key} {message}"))
        ]

    def located(self, key: str, message: str) -> str:
        """A problem with the key and, where a file or the command line has set it, the place."""
        origin = next((f" ({s.origin})" for s in self._given if s.key == key), "")
        return f"{key}{origin}: {message}"

    def _refuse_hidden_values(self) -> None:
        """What would reach the parser unseen: sections read from another file, imports trusted by a file."""
        found = [
            f"{s.key} ({s.origin}): {s.value!r} stands for a whole section; write its values one by one, or as a file "
            "behind --config"
            for s in self._given
            if (s.path in SECTIONS and isinstance(s.value, str))
            or (s.path[-1] == "class_path" and str(s.value).endswith((".yaml", ".yml", ".json")))
        ]
        found += [
            f"trust_imports ({file.where('trust_imports')}): a file cannot trust itself; write --trust_imports on the "
            "command line"
            for file in self.files
            if file.data.get("trust_imports") is not None
        ]
        if found:
            raise ConfigurationError(found)

    def _range_problems(self, config: Namespace) -> Iterator[tuple[str, str]]:
        """Key and message of every value that is out of range."""
        for section in ("trainer", "model", "data"):
            if not isinstance(config[section], Namespace):
                yield section, f"{config[section]!r} is no section; write `key: value` lines below it"
                return
        for name, message in trainer_rules.problems(config.trainer, self.parser.get_defaults()["trainer"]):
            yield f"trainer.{name}", message
        for key, low in (("checkpoint_every_n_steps", 1), ("seed", 0)):
            if config[key] < low:
                yield key, f"{config[key]} is out of range; it must be {low} or more"
        for section in ("model", "data"):
            chosen = config[section]
            class_type = _imported(chosen.class_path)
            arguments = {k: v for k, v in chosen.init_args.as_dict().items() if v is not None}
            for problem in class_type.problems(**arguments):
                name, _, text = problem.partition(": ")
                if (section, name) == ("data", "seed"):
                    continue  # the run's own seed, which has been looked at
                yield f"{section}.init_args.{name}", text

    def notes(self) -> list[str]:
        """Settings that have no effect beside the others, and what a person should know of the rest."""
        found = []
        for key in ("model", "data"):
            section = self.config[key]
            arguments = section.init_args.as_dict()
            given = {str(s.path[-1]) for s in self._given if s.path[:2] == (key, "init_args")}
            found += [
                self.located(f"{key}.init_args.{name}", f"has no effect {reason}")
                for name, reason in _imported(section.class_path).without_effect(**arguments)
                if name in given
                and arguments[name] != inspect.signature(_owner(section, name)).parameters[name].default
            ]
        limit = self.config["trainer"]["limit_val_batches"]
        if limit not in (None, 1.0):
            found.append(
                self.located(
                    "trainer.limit_val_batches", f"{limit}: validation sees a part of its split only"
                )
            )
        return found

    def _set_seed(self) -> None:
        """Nothing: the run seeds its own generators."""

    def instantiate_classes(self) -> None:
        """Nothing yet: :meth:`build_data`, :meth:`build_model` and :meth:`build_trainer` do it one by one."""

    def build_data(self) -> Any:
        """The data module alone, its text read and checked, before any network exists."""
        section = self.config["data"]
        data = _imported(section.class_path)(**section.init_args.as_dict())
        # What a message can name for a machine with a network.
        configs = self.launch.configs or [str(file.path) for file in self.files]
        words = [word for name in configs for word in ("--config", name)]
        data.prepare_command = shlex.join(["app", "prepare", *words, *self.launch.overrides])
        try:
            data.check_source()
        except DataError as error:
            origins = {
                s.path[-1]: f"{s.key} ({s.origin})"
                for s in self._given
                if s.path[:2] == ("data", "init_args")
            }
            named = next((origins[key] for key in ("path", "data_dir", "source") if key in origins), "data")
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
        except (MemoryError, RuntimeError) as error:
            if not _is_allocation(error):
                raise
            raise ConfigurationError(
                f"model ({section.class_path}): {_laid_out(class_type, arguments)} for which this machine has no "
                "memory; make the network smaller"
            ) from error
        assert isinstance(model, LanguageModelModule)
        precision = self.config["trainer"]["precision"]
        if precision == "bf16-true" and any(t.is_floating_point() for t in model.network.running_state()):
            raise ConfigurationError(
                self.located(
                    "trainer.precision",
                    "'bf16-true' would round away most of what this network's running statistics move in a step; use "
                    "bf16-mixed",
                )
            )
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
        quiet()
        try:
            arguments = parser.instantiate(parser.parse_object({"trainer": configured}))["trainer"].as_dict()
            watchers = arguments.pop("callbacks") or []
            own = [watchers] if isinstance(watchers, Callback) else list(watchers)
            arguments |= {
                "callbacks": [*own, *callbacks],
                "plugins": [*plugins, *trainer_rules.environment()],
                "strategy": trainer_rules.strategy(arguments),
                "logger": loggers,
                "default_root_dir": root,
            }
            trainer = Trainer(**arguments)
        except (MisconfigurationException, ArgumentError, ValueError, TypeError, RuntimeError) as error:
            reasons = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
            raise ConfigurationError(f"trainer: {reasons[0] if reasons else type(error).__name__}") from error
        install(trainer)
        trainer._signal_connector = NoSignals(trainer)
        return trainer


def allow_imports(trusted: Sequence[str]) -> None:
    """Restricts what a configuration may import to :data:`IMPORTABLE` and the user's own prefixes."""
    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=[*IMPORTABLE, *trusted],
        config_read_mode_fsspec_enabled=False,
        config_read_mode_urls_enabled=False,
    )
    # The folder by name: the parser goes into that of each file while it reads it.
    if trusted and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def describe_network(network: Any) -> str:
    """Class, parameters, and how many of them are matrices, on one line."""
    counts = network.parameter_counts()
    total = counts["trainable"] + counts["frozen"]
    matrices = sum(
        p.numel() for group in network.parameter_groups() if group["decay"] for p in group["params"]
    )
    frozen = f", {counts['frozen']:,} frozen" if counts["frozen"] else ""
    feedback = f", {counts['feedback']:,} fixed feedback entries" if counts["feedback"] else ""
    return f"{type(network).__name__}, {total:,} parameters ({matrices:,} in matrices{frozen}){feedback}"


def _help_words(launch: Launch) -> list[str]:
    """``--help``, or the help of one class where that was asked for."""
    return [word for word in launch.overrides if arguments.asks_for_class_help(word)] or ["--help"]


def _imported(class_path: str) -> Any:
    """A class whose path the parser has accepted and imported."""
    module, _, name = class_path.rpartition(".")
    return getattr(sys.modules[module], name)


def _owner(section: Namespace, name: str) -> Any:
    """The constructor, along the bases of a section's class, that names this argument."""
    for base in _imported(section.class_path).__mro__:
        if name in inspect.signature(base.__init__).parameters:
            return base.__init__
    raise AssertionError(f"{section.class_path} takes no {name}")


def _is_allocation(error: Exception) -> bool:
    """Whether memory could not be had, or a tensor would have more entries than can be counted."""
    signs = ("allocate", "out of memory", "Storage size calculation overflowed", "invalid shape dimension")
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)


def _laid_out(class_type: type, arguments: dict[str, Any]) -> str:
    """How large a module would be, found without memory for its weights."""
    try:
        with torch.device("meta"):
            parameters = list(class_type(**arguments).parameters())
    except RuntimeError:
        return "weights of more bytes than can be counted,"
    size = sum(p.numel() * p.element_size() for p in parameters)
    return f"{sum(p.numel() for p in parameters):,} parameters, {size / 2**30:,.1f} GiB,"


def _linked(data: Any) -> Any:
    """Stands for a value that :meth:`RunCLI.build_model` takes from the data module."""
    return data


def _yaml_errors() -> tuple[type[Exception], ...]:
    import yaml

    return (yaml.YAMLError,)
