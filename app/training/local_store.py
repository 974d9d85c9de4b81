"""Ranks of one machine meet where nobody outside of it can reach them, and ask nobody outside for names.

Left alone, PyTorch's store listens on every interface and asks the name server who 127.0.0.1 is; gloo and NCCL listen
at the address that they find for the host's name. Ranks on several machines need that; those of one do not. They meet
at a file in memory, gone with the launching process however that ends, and talk through the loopback interface.
"""

import json
import mmap
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed import FileStore

from app.run import ranks
from app.run.errors import ConfigurationError
from app.training.lightning_seams import begin_process_group

_NOTE_BYTES = 4096
_LOOPBACK = ("lo", "lo0")
#: where gloo and NCCL look for their interface; what a user has chosen is kept
_CHOICES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@contextmanager
def local_meeting(n_ranks: int) -> Iterator[dict[str, str]]:
    """Makes the files at which the ranks meet that this process starts on its own machine, and note progress.

    They and what the environment says of them are gone after the block.

    Args:
        n_ranks: how many.

    Yields:
        What they need in their environment to find them; nothing where the system has no files in memory (Linux has).
        They then meet in PyTorch's own way.
    """
    if not (hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir()):
        yield {}
        return
    # The ranks open them through this process.
    files = {name: os.memfd_create(name) for name in (ranks.MEETING, ranks.NOTES)}
    os.truncate(files[ranks.NOTES], n_ranks * _NOTE_BYTES)
    place = {name: f"/proc/{os.getpid()}/fd/{file}" for name, file in files.items()}
    os.environ.update(place)
    try:
        yield place
    finally:
        for name, file in files.items():
            os.environ.pop(name, None)
            os.close(file)


class LocalNotes:
    """Progress of the ranks of one machine, a piece of shared memory for each.

    Args:
        path: the file, as large as all pieces.
    """

    def __init__(self, path: str):
        with open(path, "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)

    @classmethod
    def of_this_machine(cls) -> "LocalNotes":
        """Where the launching process has made it."""
        return cls(os.environ[ranks.NOTES])

    def write(self, rank: int, values: Mapping[str, Any]) -> None:
        """Replaces what a rank has noted."""
        text = json.dumps(values, allow_nan=False).encode()[:_NOTE_BYTES].ljust(_NOTE_BYTES)
        self._memory[rank * _NOTE_BYTES : (rank + 1) * _NOTE_BYTES] = text

    def read(self, rank: int) -> dict[str, Any] | None:
        """What a rank has noted last; None for nothing, or where it is being written."""
        text = self._memory[rank * _NOTE_BYTES : (rank + 1) * _NOTE_BYTES]
        try:
            found: dict[str, Any] = json.loads(text)
        except ValueError:
            return None
        return found


def meet(strategy: Any) -> bool:
    """Begins the group of all ranks in this machine's own ways, where all of them are on it.

    Args:
        strategy: of the trainer; left to itself, it begins its group where that was not done here.

    Returns:
        Whether it was begun so.

    Raises:
        ConfigurationError: the launching process's file cannot be opened.
    """
    is_torchrun = ranks.is_torchrun()
    if strategy.num_nodes > 1 or (
        is_torchrun and os.environ.get("LOCAL_WORLD_SIZE") != os.environ["WORLD_SIZE"]
    ):
        return False
    names = [name for _, name in socket.if_nameindex() if name in _LOOPBACK]
    for choice in _CHOICES if names else ():
        os.environ.setdefault(choice, names[0])
    path = os.environ.get(ranks.MEETING)
    if is_torchrun or path is None:  # torchrun's agent has a store already
        return False
    if not os.access(path, os.R_OK | os.W_OK):
        raise ConfigurationError(
            f"{ranks.MEETING}: {path}, where the ranks of this machine meet, cannot be opened by rank "
            f"{strategy.local_rank}; start the ranks with torchrun"
        )
    begin_process_group(strategy, FileStore(path, strategy.num_processes))
    return True
