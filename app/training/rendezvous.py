"""What ranks that torchrun has started say to each other before they train: which run it is, or why there is none."""

import contextlib
import os
import queue
import sys
import threading
import time
from datetime import timedelta

from torch.distributed import TCPStore

from app.run import ranks
from app.run.errors import ConfigurationError, RankLostError

PATIENCE_SECONDS = 600.0
CONNECT_SECONDS = 8.0
_NOTICE_SECONDS = 30.0


def send(plan: str) -> None:
    """Tells the other ranks what rank zero has decided."""
    _store().set(_key("plan"), plan)


def refuse() -> None:
    """Tells the other ranks that rank zero was refused, and has said why."""
    with contextlib.suppress(ConfigurationError, RuntimeError):  # then each rank speaks for itself
        _store().set(_key("refused"), "yes")


def receive() -> str:
    """Waits for rank zero's decision; a signal ends the waiting.

    Raises:
        ConfigurationError: rank zero could not decide; it says why.
        RankLostError: it has not said anything for ten minutes, or torchrun's agent is gone.
    """
    store, began, is_noted = _store(), time.monotonic(), False
    try:
        while not store.check([_key("plan")]):
            if store.check([_key("refused")]):
                raise ConfigurationError("rank zero could not start the run; its message says why")
            seconds = time.monotonic() - began
            if seconds > PATIENCE_SECONDS:
                raise RankLostError(
                    f"rank zero has not said in {seconds / 60:.0f} minutes which run this is; start all ranks again"
                )
            if seconds > _NOTICE_SECONDS and not is_noted:
                is_noted = True
                print(f"rank {ranks.number()} waits for rank zero to say which run this is", file=sys.stderr)
            time.sleep(0.1)
        return store.get(_key("plan")).decode()
    except RuntimeError as error:
        raise RankLostError(
            f"torchrun's agent is gone ({_first_line(error)}); start all ranks again"
        ) from error


def is_told_by_rank_zero(seconds: float = 5.0) -> bool:
    """Whether rank zero was refused as well, so that its message is enough; that is looked for during some seconds.

    Of ranks that our own launcher has started rank zero is the launcher, which ends the others when it is refused.
    """
    deadline = time.monotonic() + seconds
    with contextlib.suppress(ConfigurationError, RuntimeError):
        store = _store() if ranks.is_torchrun() else None
        while time.monotonic() < deadline:
            if store is not None and store.check([_key("refused")]):
                return True
            time.sleep(0.1)
    return False


def _key(name: str) -> str:
    # One decision per start: torchrun restarts all ranks after a failure.
    return f"archlab/{name}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _store() -> TCPStore:
    """The store that the launching agent keeps; every rank is its client."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise ConfigurationError(
            "torchrun: its agent keeps no store here; start with --rdzv_backend static or c10d"
        )
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    made: queue.Queue[TCPStore | RuntimeError] = queue.Queue()

    def connect() -> None:
        try:
            made.put(TCPStore(address, port, is_master=False, timeout=timedelta(seconds=CONNECT_SECONDS)))
        except RuntimeError as error:
            made.put(error)

    # What listens there but is no store may never answer, and would hold this thread for ever, deaf to signals.
    threading.Thread(target=connect, daemon=True, name="rendezvous").start()
    try:
        store = made.get(timeout=CONNECT_SECONDS)
    except queue.Empty:
        store = RuntimeError(f"no answer in {CONNECT_SECONDS:.0f} s")
    if isinstance(store, RuntimeError):
        raise ConfigurationError(
            f"torchrun: what listens at {address}:{port} is not its agent's store ({_first_line(store)}); start "
            f"torchrun again, or unset {ranks.TORCHRUN} and RANK where they are left over"
        ) from store
    return store


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
