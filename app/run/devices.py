"""What a command line and its files ask of the trainer, read before the framework exists."""

import os
from collections.abc import Sequence
from typing import Any

from app.run.arguments import Launch
from app.run.configuration import ConfigFile, typed_value


def trainer_option(name: str, files: Sequence[ConfigFile], launch: Launch) -> Any:
    """A value of the section ``trainer``, as the command line or the last file gives it; None where neither does."""
    text = launch.value(f"trainer.{name}")
    if text is not None:
        return typed_value(text)
    sections = (file.data.get("trainer") for file in reversed(files))
    given = (section[name] for section in sections if isinstance(section, dict) and name in section)
    return next(given, None)


def asked_devices(devices: Any) -> int | list[int] | None:
    """How many devices, or which ones; None for all that there are. From a command line they may come as text.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(devices, list):
        return devices
    text = str(devices).strip()
    if text in ("auto", "-1"):
        return None
    return [int(word) for word in text.split(",") if word.strip()] if "," in text else int(text)


def n_known_processes(files: Sequence[ConfigFile], launch: Launch) -> int:
    """Processes of this machine that can be started at once, 1 where only the framework can say how many.

    More than there are cores are a mistake, or would gain nothing by it.
    """
    try:
        asked = asked_devices(trainer_option("devices", files, launch))
    except ValueError:
        return 1
    n = len(asked) if isinstance(asked, list) else asked or 1
    return n if 1 < n <= max(os.cpu_count() or 1, 2) else 1
