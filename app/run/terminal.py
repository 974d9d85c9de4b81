"""Lines for a person: whole in a file or a pipe, broken between words on a terminal."""

import os
import sys
import textwrap

#: characters of a line's first word, which says what the line is about, and its spaces
LABEL = 9
#: narrower than this, lines are broken as on a terminal of so many columns
NARROWEST = 40
_ERASE = "\r\x1b[2K"


def is_live() -> bool:
    """Whether standard output is a terminal on which text can be drawn again in place."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def columns() -> int | None:
    """Columns of the terminal that standard output is; None where it is none."""
    if not sys.stdout.isatty():
        return None
    try:
        found = int(os.environ.get("COLUMNS", ""))
    except ValueError:
        try:
            found = os.get_terminal_size(sys.stdout.fileno()).columns
        except (OSError, ValueError):
            found = 0
    return max(found or 80, NARROWEST)


def say(label: str, text: str) -> None:
    """Prints one fact at once.

    Args:
        label: what it is about; empty for a further line of the fact before.
        text: the fact; further lines of it stand under its first word, and paths and commands stay whole.
    """
    print(wrapped(f"{label:<{LABEL}}{text}", LABEL), flush=True)


def announce(text: str) -> None:
    """Says what is being waited for: on a terminal until the next words take its place, elsewhere on a line.

    The cursor stays at the line's beginning, so that whatever is printed next, by anyone, takes the place.
    """
    if is_live():
        sys.stdout.write(f"{_ERASE}{text} …\r")
        sys.stdout.flush()
    else:
        say("start", text)


def announced() -> None:
    """Takes back what was announced, before shorter words or none follow."""
    if is_live():
        sys.stdout.write(_ERASE)
        sys.stdout.flush()


def wrapped(line: str, indent: int = 0) -> str:
    """A line as standard output has room for it.

    Args:
        line: one line; its spaces between words stay.
        indent: spaces before its further lines.
    """
    width = columns()
    if width is None or len(line) <= width:
        return line
    return textwrap.fill(
        line, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )


def clock(seconds: float) -> str:
    """``75`` → ``1:15``; ``4000`` → ``1:06:40``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
