"""``app validate`` and ``app test``: the exact loss of a run on a whole split."""

import signal

from app.run import arguments, ranks
from app.run.configuration import read_config
from app.run.devices import n_known_processes
from app.run.directory import resolve_run
from app.run.errors import ConfigurationError, ExitCode
from app.run.launching import weights_of
from app.run.paths import typed_path
from app.run.rank_processes import OTHERS
from app.run.trust import trusted_for
from app.run.without_packages import quick_framework

USAGE = """usage: app {name} RUN [--checkpoint best|last] [options as for fit]

Evaluates a run on its whole {split} split: every token once, whatever the number of processes. Beside the loss stands
what counting alone reaches there, which takes up to 10 s where it has not been counted yet.

  RUN                   a run directory, or one of its checkpoint files
  --checkpoint          best (by validation loss, the default) or last
  --model.init_args.…   options as for app fit replace those of the run"""


def run(name: str, words: list[str]) -> int:
    """Evaluates and prints; nothing in the run directory changes.

    Args:
        name: ``validate`` or ``test``.
        words: the rest of the command line, the run first.
    """
    if not words or {"-h", "--help"} & {*words}:
        print(USAGE.format(name=name, split="validation" if name == "validate" else "test"))
        return int(ExitCode.DONE if words else ExitCode.CONFIGURATION)
    if words[0].startswith("-"):
        raise ConfigurationError(f"app {name}: the run comes first: app {name} RUN [options]")
    named = typed_path(words[0])
    directory, _ = resolve_run(named)
    which, rest = _which(words[1:])
    checkpoint = weights_of(named, which)
    launch = arguments.read(rest)
    files = [read_config(directory.config)]
    if launch.resume or launch.init_from or launch.run_dir:
        raise ConfigurationError(
            f"app {name}: --resume, --init_from and --run_dir belong to app fit; leave them out"
        )
    if launch.configs:
        raise ConfigurationError(
            f"--config: app {name} uses the configuration of the run; set single options instead"
        )

    launch.trust_imports = trusted_for(directory, launch.trust_imports)
    try:
        if ranks.number() == 0 and not ranks.is_torchrun():
            OTHERS.start(n_known_processes(files, launch) - 1)
        with quick_framework(launch.trust_imports):
            from app.training.command_line import RunCLI
            from app.training.evaluation import evaluate

        evaluated = evaluate(RunCLI(launch, files, trains=False), checkpoint, name)
    finally:
        OTHERS.end([signal.SIGKILL])
    if evaluated.figures:
        print(f"run      {directory}, {checkpoint.name}")
        for key, value in evaluated.figures.items():
            shown = f"{value:,.0f}" if key.endswith("/tokens") else f"{value:.9f}"
            print(f"{key:<20} {shown}", flush=True)
        evaluated.print_counts("val" if name == "validate" else "test")
    return int(ExitCode.DONE)


def _which(words: list[str]) -> tuple[str, list[str]]:
    rest, which = [], "best"
    stream = iter(words)
    for word in stream:
        if word == "--checkpoint" or word.startswith("--checkpoint="):
            which = word.partition("=")[2] or next(stream, "")
            if which not in ("best", "last"):
                raise ConfigurationError(
                    f"--checkpoint: {which!r} must be best or last; a file goes in the place of RUN"
                )
        else:
            rest.append(word)
    return which, rest
