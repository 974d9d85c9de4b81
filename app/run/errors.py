"""Errors that a user can act on, each with the exit code it ends the program with.

They derive from plain ``Exception``: argument parsers wrap ``ValueError``, ``TypeError`` and ``KeyError``
raised in a constructor, and the message would reach the user inside somebody else's.
"""

import os
import traceback
from collections.abc import Iterable
from enum import IntEnum

MOST_WORDS = 300  # characters of an exception in a note


class ExitCode(IntEnum):
    """Exit codes of the application."""

    DONE = 0
    UNEXPECTED = 1
    CONFIGURATION = 2
    NON_FINITE = 3
    INTEGRITY = 4
    STORAGE = 5
    RANK_LOST = 6
    INTERRUPTED = 130  # 128 + SIGINT
    READER_GONE = 141  # 128 + SIGPIPE; `app … | head`, never of a training
    TERMINATED = 143  # 128 + SIGTERM; also after SIGUSR1 and SIGHUP


class AppError(Exception):
    """Base of every error that is shown as one message, without a traceback."""

    exit_code = ExitCode.UNEXPECTED


class ConfigurationError(AppError):
    """One or several mistakes in a configuration, a command line or the data it names.

    Args:
        problems: one message, or several that are reported together. Each says what, where, the rule and
            the remedy.
    """

    exit_code = ExitCode.CONFIGURATION

    def __init__(self, problems: str | Iterable[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(ConfigurationError):
    """A text that cannot be used: missing, empty, too short, not text, or changed."""


class NonFiniteError(AppError):
    """The loss or the gradient norm stopped being finite."""

    exit_code = ExitCode.NON_FINITE


class IntegrityError(AppError):
    """A checkpoint that is damaged, incomplete or not one of ours; a state that changed in memory; a step that did not
    repeat."""

    exit_code = ExitCode.INTEGRITY


class StorageError(AppError):
    """The run directory cannot be written: full, read-only or missing."""

    exit_code = ExitCode.STORAGE


class RankLostError(AppError):
    """A rank other than the launching process ended before the others."""

    exit_code = ExitCode.RANK_LOST


def words_of(error: BaseException) -> str:
    """An exception that ends nothing, in one line for a note; with ``APP_DEBUG=1`` its traceback is printed too."""
    if os.environ.get("APP_DEBUG") == "1":
        traceback.print_exception(error)
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= MOST_WORDS else f"{text[: MOST_WORDS - 1]}…"
