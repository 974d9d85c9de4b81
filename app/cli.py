"""The command line: which command, and what its errors look like.

Only the standard library is imported here. A command's module is imported once its name is known, and it
imports the framework once its own arguments make sense.
"""

import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from app import __version__
from app.run.errors import AppError, ConfigurationError, ExitCode

COMMANDS = {
    "fit": "train a network, or resume a run",
    "validate": "evaluate a run on its validation split",
    "test": "evaluate a run on its test split",
    "generate": "continue a prompt with a run's network",
    "compare": "put runs beside each other: settings, figures, curves",
    "report": "write one page about a run, or about several",
    "trace": "show what a network did with each token of a text",
    "doctor": "say what this machine has and whether it will do",
    "prepare": "download and tokenise a data set, once",
    "crystallize": "measure what attention keeps as its top key plus a few directions",
    "gamma": "fit how gains change over depth, and the temperature they imply",
}

HELP = """usage: app COMMAND [options]

Train, watch, resume and compare language-model architectures.

commands:
{commands}

  app fit --config tilelli_banks4          a configuration by name, or a file
  app fit --run_dir DIR --resume auto      goes on where DIR stands, or says what is missing
  app COMMAND --help                       the options of one command
  app --version

archlab {version}"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: words after the program's name; by default those of this process.

    Returns:
        The exit code, see :class:`app.run.errors.ExitCode`.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except AppError as error:
        if os.environ.get("APP_DEBUG") == "1":
            traceback.print_exc()
        report(error)
        return int(error.exit_code)
    except BrokenPipeError:
        # The reader of our output left (`app … | head`); nothing is wrong with the run itself.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.UNEXPECTED)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        commands = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
        print(HELP.format(commands=commands, version=__version__))
        return int(ExitCode.DONE if words else ExitCode.CONFIGURATION)
    if words[0] in ("-V", "--version"):
        print(f"archlab {__version__}")
        return int(ExitCode.DONE)
    name = words[0]
    if name not in COMMANDS:
        from app.run.configuration import nearest

        meant = nearest(name, COMMANDS)
        hint = f"did you mean {meant!r}?" if meant else f"commands: {', '.join(COMMANDS)}"
        raise ConfigurationError(f"unknown command {name!r}; {hint}")
    command = importlib.import_module(f"app.commands.{'validate' if name == 'test' else name}")
    return int(command.run(name, words[1:]))


def report(error: AppError) -> None:
    """Prints an error for a person: one line per problem, and a mistake once however many ranks made it."""
    if (
        isinstance(error, ConfigurationError)
        and int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or "0") > 0
    ):
        return
    problems = error.problems if isinstance(error, ConfigurationError) else [str(error)]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr, flush=True)


def entry() -> None:
    """Console script."""
    sys.exit(main())
