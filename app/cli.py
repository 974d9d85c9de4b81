"""The command line: which command, and what its errors look like.

Only the standard library is imported here. A command's module is imported once its name is known, and it
imports the framework once its own arguments make sense.
"""

import atexit
import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from app import __version__
from app.commands import COMMANDS, module_of
from app.run import output, ranks
from app.run.errors import AppError, ConfigurationError, ExitCode
from app.run.rank_processes import ParentWatch, leave_words_to_rank_zero
from app.run.signals import StopRequests

#: commands that torchrun, or the application itself, starts once per device
OF_SEVERAL_PROCESSES = ("fit", "validate", "test")

HELP = """usage: app COMMAND [options]

Train, watch, resume and compare language-model architectures.

commands:
{commands}

  app fit tilelli_banks4                   a configuration by name, or a file
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
    # Figures are files. Whatever the environment names instead may be missing here, and the framework imports the
    # plotting library.
    os.environ["MPLBACKEND"] = "agg"
    with output.guarded():
        try:
            code = _dispatch(words)
            output.flush()
            return code
        except output.OutputLost as lost:
            if lost.exit_code == ExitCode.READER_GONE:  # nothing is wrong, and nobody is there to be told
                return int(ExitCode.DONE if words[:1] == ["fit"] else lost.exit_code)
            return _refused(lost)
        except AppError as error:
            return _refused(error)


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
    if name != "doctor":  # which reports the environment as it is
        ranks.settle(may_be_several=name in OF_SEVERAL_PROCESSES)
        if ranks.number() > 0:
            ParentWatch.of_this_rank().start()
    import logging

    # On a full disk it cannot keep its list of fonts, and does without; the framework imports it, drawing or not.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    try:
        command = importlib.import_module(module_of(name))
        return int(command.run(name, words[1:]))
    except SystemExit as leave:
        if leave.code:
            raise
        return int(ExitCode.DONE)  # a parser that has printed its help
    except Exception as error:
        leave_words_to_rank_zero()
        if isinstance(error, AppError) and name in OF_SEVERAL_PROCESSES and _is_told_by_rank_zero(error):
            return int(error.exit_code)
        raise


def _is_told_by_rank_zero(error: AppError) -> bool:
    """Whether this is another rank's copy of a mistake that rank zero reports; rank zero lets the others know of it."""
    if ranks.number() == 0 and not ranks.is_torchrun():
        return False
    from app.training import rendezvous

    if ranks.number() == 0:
        rendezvous.refuse()
        return False
    return isinstance(error, ConfigurationError) and rendezvous.is_told_by_rank_zero()


def _refused(error: AppError) -> int:
    """Prints an error for a person, one line per problem, and returns its exit code."""
    if os.environ.get("APP_DEBUG") == "1":
        traceback.print_exc()
    for problem in error.problems if isinstance(error, ConfigurationError) else [str(error)]:
        print(f"error: {problem}", file=sys.stderr, flush=True)
    return int(error.exit_code)


def entry() -> NoReturn:
    """Console script: a signal ends every command with its exit code and without a traceback."""
    output.install()
    requests = StopRequests()
    code: object = int(ExitCode.UNEXPECTED)
    try:
        code = main()
    except SystemExit as leave:
        code = leave.code
    finally:
        output.make_courtesy()  # also to the interpreter, whose last words would change the exit code
        # The way out takes a moment too; whoever is asked to leave is leaving.
        requests.conclude(code if isinstance(code, int) else int(code is not None))
    end_process(code)


def end_process(code: object) -> NoReturn:
    """Ends the process with a code, as ``sys.exit`` does.

    Of a process of several ranks all is ended but the interpreter. While that is taken down, a thread of gloo's may be
    about to drop the tensors of the last collective; it is not let into Python any more, and aborts the process.
    """
    distributed = sys.modules.get("torch.distributed")
    if isinstance(code, int) and distributed is not None and distributed.is_initialized():
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)  # type: ignore[arg-type]
