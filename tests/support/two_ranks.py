"""Two forked processes on one store, without the application around them."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def two_ranks(body: Callable[[int, str, Connection], None], store: Path, seconds: float = 60.0) -> list[Any]:
    """What each of two ranks sends back, rank 0 first; None from one that sent nothing in time.

    Args:
        body: called with rank, the path of the store to meet at, and a connection to send one object through.
        store: a file that is not there yet.
        seconds: to wait for each.
    """
    context = multiprocessing.get_context("fork")
    pipes, processes = [], []
    for rank in range(2):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=body, args=(rank, str(store), theirs))
        process.start()
        pipes.append(ours)
        processes.append(process)
    found = [pipe.recv() if pipe.poll(seconds) else None for pipe in pipes]
    for process in processes:
        process.join(10)
        process.kill()
    return found
