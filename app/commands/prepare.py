"""``app prepare``: downloads and tokenises the data of a configuration, once."""

import time

from app.run import arguments
from app.run.configuration import find_config, read_config
from app.run.errors import ConfigurationError, ExitCode
from app.run.signals import requested
from app.run.without_packages import quick_framework

USAGE = """usage: app prepare NAME_OR_FILE [options as for fit]

Downloads and tokenises the data that a configuration names, unless that has happened. app fit does it by itself; here
it needs neither a GPU nor the time that was asked for one, and the folder it prints can be copied to a machine without
a network."""


def run(name: str, words: list[str]) -> int:
    """Prepares and prints where the data lies.

    Args:
        name: ``prepare``.
        words: the rest of the command line.
    """
    launch = arguments.read(arguments.with_config(words))
    if launch.wants_help or not words:
        print(USAGE)
        return int(ExitCode.DONE if words else ExitCode.CONFIGURATION)
    if launch.run_dir or launch.resume or launch.init_from or launch.accept_data_change:
        raise ConfigurationError(
            "app prepare: --run_dir, --resume, --init_from and --accept_data_change belong to app fit; leave them out"
        )
    if not launch.configs:
        raise ConfigurationError("app prepare: --config is missing; name the configuration to prepare for")
    files = [read_config(find_config(config)) for config in launch.configs]

    with quick_framework(launch.trust_imports):
        from app.training.command_line import RunCLI

    cli = RunCLI(launch, files, trains=False)
    started = time.monotonic()
    try:
        data = cli.build_data()
    except SystemExit:
        if (asked := requested()) is not None:
            print(f"stopped by {asked.name}; start the same command again", flush=True)
        raise
    for note in [*cli.notes(), *data.notes()]:
        print(f"note     {note}")
    print(f"data     {data.describe()}")
    print(f"ready    after {time.monotonic() - started:.1f} s; app fit with the same options finds it")
    return int(ExitCode.DONE)
