"""Ranks of one machine meet where nobody outside of it can reach them, and ask nobody outside for names.

Left alone, PyTorch's store listens on every interface and asks the name server who 127.0.0.1 is; gloo and NCCL listen
at the address that they find for the host's name. Ranks on several machines need that; those of one do not. They meet
at a file in memory, gone with the launching process however that ends, and talk through the loopback interface.
"""

import os
import socket
from pathlib import Path
from typing import Any

from torch.distributed import FileStore

from app.run import ranks
from app.run.errors import ConfigurationError
from app.training.lightning_seams import begin_process_group

_LOOPBACK = ("lo", "lo0")
#: where gloo and NCCL look for their interface; what a user has chosen is kept
_CHOICES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def open_meeting() -> dict[str, str]:
    """Makes the file at which the ranks will meet that this process starts on its own machine.

    Returns:
        What they need in their environment to find it; nothing where the system has no files in memory (Linux has).
        They then meet in PyTorch's own way.
    """
    if not (hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir()):
        return {}
    # Never closed: the ranks open it through this process.
    place = {ranks.MEETING: f"/proc/{os.getpid()}/fd/{os.memfd_create('ranks')}"}
    os.environ.update(place)
    return place


def meet(strategy: Any) -> None:
    """Begins the group of all ranks in this machine's own ways, where all of them are on it.

    Args:
        strategy: of the trainer; left to itself, it begins its group where that was not done here.

    Raises:
        ConfigurationError: the launching process's file cannot be opened.
    """
    is_torchrun = ranks.is_torchrun()
    if strategy.num_nodes > 1 or (
        is_torchrun and os.environ.get("LOCAL_WORLD_SIZE") != os.environ["WORLD_SIZE"]
    ):
        return
    names = [name for _, name in socket.if_nameindex() if name in _LOOPBACK]
    for choice in _CHOICES if names else ():
        os.environ.setdefault(choice, names[0])
    path = os.environ.get(ranks.MEETING)
    if is_torchrun or path is None:  # torchrun's agent has a store already
        return
    if not os.access(path, os.R_OK | os.W_OK):
        raise ConfigurationError(
            f"{ranks.MEETING}: {path}, where the ranks of this machine meet, cannot be opened by rank "
            f"{strategy.local_rank}; start the ranks with torchrun"
        )
    begin_process_group(strategy, FileStore(path, strategy.num_processes))
