"""The part of a command line that is read before anything heavy is imported."""

from dataclasses import dataclass, field

from app.run.errors import ConfigurationError
from app.run.paths import typed_path

#: flags of ours that take a value and are decided before the framework's parser exists
LAUNCH_FLAGS = ("config", "run_dir", "resume", "init_from", "trust_imports", "resume_inexact")
#: those of them that name a file or folder
PATH_FLAGS = ("config", "run_dir", "resume", "init_from")


@dataclass
class Launch:
    """A command line, taken apart.

    Attributes:
        configs: configuration files or names, in order; they count before every other option.
        run_dir: folder of the run, if one is asked for.
        resume: ``auto``, a run directory or a checkpoint file.
        init_from: run directory or checkpoint file to take weights from.
        trust_imports: import prefixes of the user's own.
        accept_data_change: whether a run may go on with another text than it began with.
        resume_inexact: whether a run may go on where its data cannot: at the beginning of the epoch again.
        wants_help: whether ``--help`` stands anywhere.
        overrides: everything else, in order.
    """

    configs: list[str] = field(default_factory=list)
    run_dir: str | None = None
    resume: str | None = None
    init_from: str | None = None
    trust_imports: list[str] = field(default_factory=list)
    accept_data_change: bool = False
    resume_inexact: bool | None = None
    wants_help: bool = False
    overrides: list[str] = field(default_factory=list)

    def value(self, key: str) -> str | None:
        """The last value that the command line gives this option, if it gives one."""
        found = None
        for position, word in enumerate(self.overrides):
            if word == f"--{key}" and position + 1 < len(self.overrides):
                found = self.overrides[position + 1]
            elif word.startswith(f"--{key}="):
                found = word.split("=", 1)[1]
        return found


def with_config(words: list[str]) -> list[str]:
    """A command line that may begin with configurations: ``gpt_char`` in place of ``--config gpt_char``."""
    n_named = next((n for n, word in enumerate(words) if word.startswith("-")), len(words))
    return [*(part for name in words[:n_named] for part in ("--config", name)), *words[n_named:]]


def read(words: list[str]) -> Launch:
    """Takes a command line apart.

    Args:
        words: the words after the command's name.

    Raises:
        ConfigurationError: a flag of ours without its value, given twice, or with what is no path.
    """
    launch = Launch()
    rest = iter(words)
    for word in rest:
        if word in ("-h", "--help"):
            launch.wants_help = True
            continue
        if word == "--accept_data_change":
            launch.accept_data_change = True
            continue
        if asks_for_class_help(word):
            launch.wants_help = True
            value = "" if "=" in word else next(rest, "")
            launch.overrides.append(f"{word}={value}" if value else word)
            continue
        name, equals, value = word.partition("=")
        flag = "config" if name == "-c" else name.removeprefix("--")
        if not name.startswith("-") or flag not in LAUNCH_FLAGS:
            launch.overrides.append(word)
            continue
        if not equals:
            value = next(rest, "")
        if not value or value.startswith("--"):
            raise ConfigurationError(f"--{flag}: a value is missing; write --{flag} VALUE")
        if flag in PATH_FLAGS:
            value = typed_path(value, f"--{flag}")
        if flag == "resume_inexact" and value not in ("true", "false"):
            raise ConfigurationError(f"--resume_inexact: {value!r} is neither true nor false")
        if flag == "config":
            launch.configs.append(value)
        elif flag == "trust_imports":
            launch.trust_imports.append(value)
        elif getattr(launch, flag) is not None:
            raise ConfigurationError(
                f"--{flag}: given twice, as {getattr(launch, flag)!r} and {value!r}; keep one"
            )
        else:
            setattr(launch, flag, value == "true" if flag == "resume_inexact" else value)
    return launch


def asks_for_class_help(word: str) -> bool:
    """Whether this is ``--model.help`` or the like, with or without a class behind ``=``."""
    return word.startswith("--") and word.partition("=")[0].endswith(".help")
