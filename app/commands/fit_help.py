"""``app fit --help``: the options that people set; ``--help all`` has the others, ``--model.help X`` those of X."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from app import options
from app.run.arguments import Launch, asks_for_class_help
from app.run.configuration import nearest, typed_value
from app.run.errors import ConfigurationError
from app.run.without_packages import quick_framework, without_compiler

if TYPE_CHECKING:
    from app.training.options.help import Entry

USAGE = """usage: app fit NAME_OR_FILE [OVERLAY …] [options (range; default)]

Trains, or goes on with a run. Options come from YAML files, left to right, then
from here; a dotted name is a key of the YAML."""
#: decided before anything heavy is imported, see app.run.arguments
LAUNCH = {
    "--config NAME_OR_FILE": "a shipped one (app configs) or a YAML file",
    "--run_dir DIR": "folder of the run, in place of runs/NAME/TIME",
    "--resume RUN": "go on with a run; auto: with that of --run_dir",
    "--init_from RUN": "take the weights of a run, and nothing else",
    "--dry_run": "parameters, memory and time, and stop",
    "--print_config": "what files and options come to, and stop",
    "--trust_imports PACKAGE": "let configurations name classes of your own",
    "--accept_data_change": "go on although the text was changed",
    "--resume_inexact true": "go on although the data cannot, from its epoch",
}
#: what most runs set, of the trainer and of the data
TRAINER = (
    "max_steps", "accelerator", "devices", "precision", "val_check_interval", "limit_val_batches",
    "accumulate_grad_batches", "log_every_n_steps", "callbacks",
)  # fmt: skip
#: what hardly any run sets of the data
RARE_DATA = ("max_bytes_on_device",)


def run(launch: Launch) -> None:
    """Prints the help that was asked for."""
    of_class = [word for word in launch.overrides if asks_for_class_help(word)]
    with light_imports():
        if not of_class:
            print("\n".join(_lines(everything="all" in launch.overrides)))
            return
        option, _, name = of_class[-1].removeprefix("--").partition("=")
        _print_class(option.removesuffix(".help"), name)


@contextmanager
def light_imports() -> Iterator[None]:
    """Imports the framework meanwhile without what signatures and docstrings do not need."""
    with quick_framework(()), without_compiler():
        yield


def sections(everything: bool, brief: bool) -> "Iterator[tuple[str, list[Entry]]]":
    """Title and options of each section but those of single classes.

    Args:
        everything: also what few people set, and what has no effect beside the defaults.
        brief: the first clause of each meaning alone.
    """
    from app.training.language_model import LanguageModelModule
    from app.training.options import trainer_rules
    from app.training.options.help import Entry, choices_in, entries
    from app.training.options.run import RunOptions
    from datamodules.base import TokenDataModule

    def taken(name: str, choices: tuple[str, ...]) -> tuple[str, ...]:
        """Those that the trainer's rules do not refuse, each once."""
        refused = {c for c in choices if name in dict(trainer_rules.problems({name: typed_value(c)}))}
        return tuple(choice for choice in dict.fromkeys(choices) if choice not in refused)

    launch = [Entry(name, text) for name, text in LAUNCH.items()]
    yield "run", [*launch, *entries("--", RunOptions, brief=brief)]
    types = trainer_rules.types()
    others = sorted({*types} - {*TRAINER, *trainer_rules.REFUSED}) if everything else []
    yield (
        "trainer",
        [
            Entry(f"--trainer.{name}", trainer_rules.about(name), taken(name, choices_in(types[name])))
            for name in [*TRAINER, *others]
        ],
    )
    idle = () if everything else options.unused(LanguageModelModule, {})
    training = entries("--model.", LanguageModelModule, without=("network", *idle), brief=brief)
    yield "model: training, whatever the network", list(training)
    few = () if everything else RARE_DATA
    windows = entries("--data.", TokenDataModule, ("seed", *few), brief)
    yield "data: windows, whatever the text", list(windows)


def _lines(everything: bool) -> Iterator[str]:
    from app.training.options.help import listing, row, rows

    yield USAGE + ("\n" if everything else " --help all lists every option.\n")
    for number, (title, entries) in enumerate(sections(everything, brief=not everything)):
        yield f"\n{title}" if number else title
        yield from rows(entries)
    for section, classes in offered_classes().items():
        ours = {name: owner for name, owner in classes.items() if not _is_of_framework(owner)}
        yield from ("", *listing(f"--{section} CLASS (--{section}.help CLASS for its options)", ours))
        if theirs := sorted({*classes} - {*ours}):
            yield from row("of Lightning", ", ".join(theirs), 21)


def _print_class(section: str, name: str) -> None:
    """Prints the options of one class, or the classes of a section where none is named.

    Raises:
        ConfigurationError: no such section or class.
    """
    from app.training.options.help import entries, headline, listing, rows

    offered = offered_classes()
    if section not in offered:
        known = ", ".join(f"--{section}.help" for section in offered)
        raise ConfigurationError(
            f"--{section}.help: there is no help on {section}; write --help, or one of {known}"
        )
    classes = offered[section]
    if not name:
        print("\n".join(listing(f"--{section} CLASS", classes)))
        print(f"\n--{section}.help CLASS lists the options of one.")
        return
    bare = name.rpartition(".")[2]
    if bare not in classes:
        meant = nearest(bare, classes)
        hint = f"did you mean {meant}?" if meant else f"known: {', '.join(classes)}"
        raise ConfigurationError(f"--{section}.help {name}: there is no such class; {hint}")
    prefix = f"--{section}." if section != "trainer.callbacks" else ""
    print(f"{bare}: {headline(classes[bare])}\n")
    print("\n".join(rows(entries(prefix, classes[bare]))))


def offered_classes() -> dict[str, dict[str, type]]:
    """What each section can choose from, by bare name."""
    from lightning.pytorch import Callback, LightningDataModule

    from app.training.command_line import IMPORTABLE
    from app.training.config_errors import offered
    from app.training.language_model import LanguageModelModule
    from app.training.options import allowed

    bases = {"model": LanguageModelModule, "data": LightningDataModule, "trainer.callbacks": Callback}
    found = {section: offered(IMPORTABLE, base) for section, base in bases.items()}
    watchers = {
        name: owner
        for name, owner in found["trainer.callbacks"].items()
        if name in allowed.CALLBACKS or not _is_of_framework(owner)
    }
    bases_of_others = {base for owner in watchers.values() for base in owner.__mro__[1:]}
    found["trainer.callbacks"] = {
        name: owner
        for name, owner in watchers.items()
        if name in allowed.CALLBACKS or owner not in bases_of_others
    }
    return found


def _is_of_framework(owner: type) -> bool:
    return owner.__module__.startswith("lightning.")
