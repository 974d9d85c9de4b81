"""From configuration files and a command line to model, data and trainer."""

import contextlib
import operator
import re
import shlex
from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace, set_loader, set_parsing_settings
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from app import options
from app.models.blueprint import lay_out
from app.options import options_of
from app.run.arguments import Launch
from app.run.bounded import Budget
from app.run.configuration import LAUNCH_KEYS, ConfigFile, strict_load
from app.run.errors import ConfigurationError, DataError
from app.run.imports import check_trusted, make_trusted_found
from app.run.rank_processes import OTHERS, rank_zero
from app.training.config_errors import LINKED, ConfigErrors
from app.training.framework_output import silence_framework
from app.training.language_model import LanguageModelModule
from app.training.lightning_seams import Unprofiled, install
from app.training.model_errors import explained
from app.training.options import allowed, trainer_rules
from app.training.options.network_size import size_problem
from app.training.options.run import RunOptions
from app.training.options.settings import NETWORK, Setting, settings
from app.training.plain_data import PlainDataModule, class_path
from app.training.reproducible import make_reproducible
from app.training.run_callbacks.adopted import adopt

#: import paths that a configuration may name; everything else is refused before it is imported
IMPORTABLE = ("app.training", "app.models", "callbacks", "datamodules", "torch.optim", *allowed.PACKAGES)
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
        trains: whether anything is trained; what watches training is left out, and not even imported, otherwise.

    Raises:
        ConfigurationError: all unknown keys, wrong types and values out of range, together.
    """

    def __init__(self, launch: Launch, files: Sequence[ConfigFile], trains: bool = True):
        self.launch = launch
        self._trains = trains
        self.files = files if trains else [_without_watchers(file) for file in files]
        self._given = settings(self.files, launch)
        self._look_through()
        super().__init__(
            model_class=LanguageModelModule,
            datamodule_class=LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=False,
            trainer_defaults=trainer_rules.TRAINER_DEFAULTS,
            parser_class=RunParser,
            parser_kwargs={"allow_abbrev": False, "prog": "app fit"},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=[
                *(word for file in self.files for word in ("--config", self._text_of(file))),
                *launch.overrides,
            ],
            run=False,
        )

    def _look_through(self) -> None:
        """Refuses a configuration with all of its mistakes together."""
        self._refuse_hidden_values()
        allow_imports(self.launch.trust_imports)
        set_loader("yaml", strict_load, exceptions=(yaml.YAMLError,))
        tree = {name: p.annotation for name, p in options_of(RunOptions).items()}
        tree |= {"trainer": trainer_rules.types(), "model": LanguageModelModule, "data": LightningDataModule}
        found = ConfigErrors(self._given, tree, IMPORTABLE, self.launch.trust_imports)
        problems = list(found.problems)
        trainer = found.values.get(("trainer",), {})
        # Data may be prepared, and its command checked, where there are no such devices.
        devices = trainer_rules.device_problems(trainer) if self._trains else ()
        for name, message in (*trainer_rules.problems(trainer), *devices):
            if name not in found.in_doubt.get(("trainer",), ()):
                problems.append(self.located(f"trainer.{name}", message))
        problems += [self.located(f"trainer.{name}", message) for name, message in allowed.problems(found)]
        problems += self._size_problems(found)
        if problems:
            raise ConfigurationError(problems)
        self._classes = found.classes

    def _size_problems(self, found: ConfigErrors) -> Iterator[str]:
        """What is wrong with a network of ours that is larger than any can be."""
        module = found.classes.get(("model",))
        if module is None or not issubclass(module, LanguageModelModule) or module.network_class is None:
            return
        network = module.network_class
        values = module.network_options(found.values.get(("model",), {}))
        problem = size_problem(lambda: network(**dict.fromkeys(LINKED, 2) | values))
        if problem is not None:
            yield self.located(f"model.init_args.{problem[0]}", problem[1])

    def _text_of(self, file: ConfigFile) -> str:
        """The content of a configuration file as the parser takes it, with today's names of options."""
        data = {key: value for key, value in file.data.items() if key not in LAUNCH_KEYS}
        former = getattr(self._classes.get(("model",)), "former_names", {})
        model = data.get("model")
        if former and isinstance(model, dict) and isinstance(model.get("init_args"), dict):
            now = {former.get(name, name): value for name, value in model["init_args"].items()}
            data["model"] = model | {"init_args": now}
        return str(yaml.safe_dump(data, sort_keys=False))

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the options of a run."""
        for name, option in options_of(RunOptions).items():
            parser.add_argument(f"--{name}", type=option.annotation, default=option.default)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Hands the data's vocabulary and block size to the model, or to the network that the model is given."""
        for name in LINKED:
            for target in (f"model.init_args.{name}", f"model.init_args.network.init_args.{name}"):
                # Not "data.vocab_size": an AttributeError inside of that property would be taken for None.
                parser.link_arguments(
                    "data", target, compute_fn=operator.attrgetter(name), apply_on="instantiate"
                )
        parser.link_arguments("seed", "data.init_args.seed")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses what has been looked through."""
        try:
            self.config = parser.parse_args(args)
        except ConfigurationError as error:
            # A word that is no option, or what no value alone is to blame for.
            raise ConfigurationError(_on_one_line(str(error))) from error

    @property
    def resolved(self) -> str:
        """The whole configuration as YAML: what files and command line set, and every default."""
        if self._trains:
            allowed.settle(self.config["trainer"])
        text: str = self.parser.dump(self.config, skip_link_targets=True, format="yaml")
        if hasattr(self._classes[("data",)], "check_source"):
            return text
        # Where the data decides nothing, what the model was given is a part of the configuration.
        configuration: dict[str, Any] = strict_load(text)
        for setting in self._sizes:
            node = configuration
            for key in setting.path[:-1]:
                node = node[str(key)]
            node[str(setting.path[-1])] = setting.value
        return str(yaml.safe_dump(configuration, sort_keys=False))

    @property
    def _sizes(self) -> list[Setting]:
        """Vocabulary and block size that a user has given the model, or a network that it is given."""
        return [
            s
            for s in self._given
            if s.path[0] == "model" and s.path[-1] in LINKED and s.path[-2:-1] == ("init_args",)
        ]

    def located(self, key: str, message: str) -> str:
        """A problem with the key and, where a file or the command line has set it, the place."""
        places = (s.place for s in self._given if s.key == key or s.key.startswith(f"{key}."))
        return f"{next(places, key)}: {message}"

    def _refuse_hidden_values(self) -> None:
        """What would reach the parser unseen: sections read from another file, imports trusted by a file."""
        found = [
            f"{s.place}: {s.value!r} stands for a whole section; write its values one by one, or as a file "
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

    def notes(self) -> list[str]:
        """Settings that have no effect beside the others, and what a person should know of the rest."""
        found = []
        for where, class_type in self._classes.items():
            given = {str(s.path[-1]): s for s in self._given if s.path[:-1] == (*where, "init_args")}
            if class_type is None or where[0] == "trainer":
                continue
            section = self.config[".".join(map(str, where))]
            if "init_args" not in section:  # a class that takes none
                continue
            usual = options.defaults(class_type)
            found += [
                f"{given[name].place}: has no effect {reason}"
                for name, reason in options.unused(class_type, section.init_args.as_dict()).items()
                if name in given and section.init_args[name] != usual.get(name)
            ]
        limit = self.config["trainer"]["limit_val_batches"]
        # As the framework reads it: 1.0 is the whole, the number 1 a single batch.
        if limit is not None and not (isinstance(limit, float) and limit == 1.0):
            batches = (
                f"{limit} batch{'es' if limit > 1 else ''}" if isinstance(limit, int) else f"{limit:.0%}"
            )
            seen = f"validation sees {batches} of its split only" if limit else "there is no validation"
            found.append(self.located("trainer.limit_val_batches", f"{limit}: {seen}"))
        return found

    def _set_seed(self) -> None:
        """Nothing: the run seeds its own generators."""

    def instantiate_classes(self) -> None:
        """Nothing yet: :meth:`build_data`, :meth:`build_model` and :meth:`build_trainer` do it one by one."""

    def build_data(self) -> Any:
        """The data module alone, its text read and checked, before any network exists."""
        self._check_data()
        # Without links: they would read the text here, and its errors would come wrapped.
        parser = RunParser()
        parser.add_subclass_arguments(LightningDataModule, "data")
        data = parser.instantiate(Namespace(data=self.config["data"])).data
        if not hasattr(data, "check_source"):
            data = self._plain(data)
        # What a message can name for a machine with a network.
        configs = self.launch.configs or [str(file.path) for file in self.files]
        words = [word for name in configs for word in ("--config", name)]
        data.prepare_command = shlex.join(["app", "prepare", *words, *self.launch.overrides])
        try:
            _read_once(data)
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

    def _check_data(self) -> None:
        """Refuses what only shows once mappings, whose keys are no options, are put together."""
        section, class_type = self.config["data"], self._classes[("data",)]
        assert class_type is not None
        given = section.init_args.as_dict() if "init_args" in section else {}
        if problems := options.problems(class_type, given):
            raise ConfigurationError(self.located(f"data.init_args.{p.name}", p.rule) for p in problems)

    def _plain(self, inner: LightningDataModule) -> PlainDataModule:
        """A data module of somebody's own, with the sizes that the model is given or that it has as attributes."""
        own = {name: getattr(inner, name, None) for name in LINKED}
        sizes = {name: size for name, size in own.items() if type(size) is int}
        sizes |= {str(s.path[-1]): s.value for s in self._sizes if type(s.value) is int}
        asking = [
            where
            for where in (("model",), NETWORK)
            if (chosen := self._classes.get(where)) is not None and "vocab_size" in options_of(chosen)
        ]
        if "vocab_size" not in sizes:
            attribute = f"give {class_path(inner)} an attribute vocab_size"
            key = ".".join(map(str, (*asking[-1], "init_args", "vocab_size"))) if asking else ""
            raise ConfigurationError(
                f"{key}: is not set, and {class_path(inner)} does not decide it; set it, or {attribute}"
                if key
                else f"data: nothing says how many tokens there are; {attribute}"
            )
        return PlainDataModule(inner, seed=self.config["seed"], **sizes)

    def _check_linked(self, data: Any) -> None:
        problems = []
        for setting in self._sizes:
            value = getattr(data, str(setting.path[-1]))
            if setting.value not in (None, value):
                problems.append(
                    f"{setting.place}: {setting.value} differs from the data's {value}; leave it out, the data "
                    "decides it"
                )
        if problems:
            raise ConfigurationError(problems)

    def build_model(self, data: Any, weights: Mapping[str, Tensor] | None = None) -> LanguageModelModule:
        """The module, with the data's vocabulary and block size where it takes them.

        Args:
            data: the data module.
            weights: that it is going to take, all of them; it is not built where they could not fill it.
        """
        section = self.config["model"]

        def build() -> LanguageModelModule:
            made = self.parser.instantiate(Namespace(data=data, model=section)).model
            assert isinstance(made, LanguageModelModule)
            return made

        try:
            if weights is not None:
                # Weights in half precision fill a network that is built in full, and for a moment an untied one.
                budget = Budget.of_file(2 * sum(tensor.nbytes for tensor in weights.values()))
                # A constructor of the user's own may need tensors with entries.
                with contextlib.suppress(RuntimeError):
                    lay_out(build, budget.charge)
            model = build()
        except Exception as error:
            told = explained(error, section.class_path, build)
            raise told from (error if isinstance(told, ConfigurationError) else None)
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
            callbacks: ours; they come after those that the configuration names.
            plugins: ours, checkpoint files among them.
            loggers: ours; they come before those that the configuration names.
            root: the run directory, into which the framework's own write.
            with_watchers: whether callbacks, loggers and profiler that the configuration names come too.
        """
        parser = RunParser()
        parser.add_class_arguments(Trainer, "trainer", instantiate=False, sub_configs=True)
        configured = self.config["trainer"].as_dict()
        if missing := list(trainer_rules.device_problems(configured)):
            raise ConfigurationError(self.located(f"trainer.{name}", text) for name, text in missing)
        beside: list[Logger] = []
        if with_watchers:
            allowed.place_callbacks(configured, root)
            beside, wrong = allowed.take_loggers(configured, root)
            if wrong:
                raise ConfigurationError(self.located(f"trainer.{name}", text) for name, text in wrong)
        else:
            configured |= {"callbacks": None, "enable_progress_bar": False}
        silence_framework()
        try:
            arguments = parser.instantiate(parser.parse_object({"trainer": configured}))["trainer"].as_dict()
            own = _several(arguments.pop("callbacks"))
            arguments |= {
                "callbacks": [*own, *callbacks, *adopt(own)],
                "plugins": [*plugins, *trainer_rules.environment()],
                "strategy": trainer_rules.strategy(arguments),
                "logger": [*loggers, *beside, *_several(arguments["logger"])],
                "profiler": allowed.profiler(arguments["profiler"], root) or Unprofiled(),
                "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in own),
                "default_root_dir": root,
            }
            trainer = Trainer(**arguments)
        except (
            MisconfigurationException,
            ArgumentError,
            ImportError,
            ValueError,
            TypeError,
            RuntimeError,
        ) as error:
            reasons = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
            raise ConfigurationError(f"trainer: {reasons[0] if reasons else type(error).__name__}") from error
        if not self.config["fast_nondeterministic"]:
            make_reproducible(trainer.strategy.root_device)
        install(trainer)
        return trainer


def _read_once(data: Any) -> None:
    """Reads the text: rank zero alone, where the ranks that it has started can take what it has read."""
    if (zero := rank_zero()) is not None and hasattr(data, "take_text"):
        lengths, files = zero.receive("text")
        if files:
            data.take_text(files[0], lengths)
    data.check_source()
    if hasattr(data, "share_text"):
        OTHERS.say("text", data.share_text)


def _without_watchers(file: ConfigFile) -> ConfigFile:
    """A configuration file without what watches or ends a training."""
    trainer = file.data.get("trainer")
    if not isinstance(trainer, dict):
        return file
    kept = {name: value for name, value in trainer.items() if name.removesuffix("+") not in allowed.OPTIONS}
    return replace(file, data=file.data | {"trainer": kept})


def allow_imports(trusted: Sequence[str]) -> None:
    """Restricts what a configuration may import to :data:`IMPORTABLE` and the user's own prefixes."""
    check_trusted(trusted)
    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=[*IMPORTABLE, *trusted],
        config_read_mode_fsspec_enabled=False,
        config_read_mode_urls_enabled=False,
    )
    if trusted:
        make_trusted_found()


def _several(value: Any) -> list[Any]:
    """What a section names, be it none, one or several."""
    return list(value) if isinstance(value, list | tuple) else [value] if value else []


def _on_one_line(text: str) -> str:
    line = "; ".join(part.strip() for part in text.splitlines() if part.strip())
    return re.sub(r'^Parser key "([^"]+)":;? ?', r"\1: ", line)
