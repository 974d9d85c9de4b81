"""What the command lines of several commands share."""

import argparse
from typing import Any, NoReturn

from app.run.configuration import nearest
from app.run.errors import ConfigurationError


class CommandParser(argparse.ArgumentParser):
    """A parser whose mistakes are one message of ours; no abbreviations.

    Args:
        command: its name after ``app``.
        options: of the parser.
    """

    def __init__(self, command: str, **options: Any):
        super().__init__(prog=f"app {command}", allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raises :class:`~app.run.errors.ConfigurationError` in place of ending the process."""
        raise ConfigurationError(f"{self.prog}: {message}; {self._meant(message)}see {self.prog} --help")

    def _meant(self, message: str) -> str:
        unknown = message.partition("unrecognized arguments: --")[2].partition(" ")[0].partition("=")[0]
        meant = nearest(unknown, [name.removeprefix("--") for name in self._option_string_actions])
        return f"did you mean --{meant}? " if unknown and meant else ""


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Adds what says which of a run's networks is loaded, from whose code and to where."""
    parser.add_argument(
        "--checkpoint", choices=("best", "last"), default="best", help="which one of the run's"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, …")
    parser.add_argument(
        "--trust_imports",
        action="append",
        default=[],
        metavar="PREFIX",
        help="import a network of your own from here",
    )


def check_device(name: str) -> None:
    """Raises :class:`~app.run.errors.ConfigurationError` where nothing can be computed on this device."""
    import torch

    try:
        torch.zeros(1, device=name).item()
    except Exception as error:  # each kind of device fails in its own way, also by a package that is missing
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigurationError(
            f"--device {name}: cannot be used here ({reason}); leave it out for cpu"
        ) from error
