"""Pictures that a command draws beside its numbers."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

from app.run.atomic import storage_error, write_bytes
from app.run.errors import words_of

Found = TypeVar("Found")


def write_picture(target: Path, draw: Callable[[BinaryIO], Found]) -> tuple[Found | None, str]:
    """Draws a picture into a file, whole or not at all; one that cannot be drawn costs nobody the numbers.

    Args:
        target: the file, whose folder is made.
        draw: writes the picture into the file that it is given.

    Returns:
        What ``draw`` returned, and why there is no picture; empty where there is one.

    Raises:
        StorageError: the file cannot be written.
    """
    drawn = io.BytesIO()
    try:
        found = draw(drawn)
    except Exception as error:
        return None, f"{target.name} is left out ({words_of(error)}; APP_DEBUG=1 shows more)"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, target) from error
    write_bytes(target, drawn.getvalue())
    return found, ""
