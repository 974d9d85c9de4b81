"""How ranks that torchrun has started learn which run they take part in."""

import os
from datetime import timedelta

from torch.distributed import TCPStore

from app.run.errors import ConfigurationError

PATIENCE = timedelta(minutes=10)


def send(plan: str) -> None:
    """Tells the other ranks what rank zero has decided; an empty text says that it could not."""
    _store().set(_key(), plan or "none")


def receive() -> str:
    """Waits for rank zero's decision.

    Raises:
        ConfigurationError: rank zero could not decide; it says why.
    """
    plan: str = _store().get(_key()).decode()
    if plan == "none":
        raise ConfigurationError("rank zero could not start the run; its message says why")
    return plan


def _key() -> str:
    # One decision per start: torchrun restarts all ranks after a failure.
    return f"archlab/plan/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _store() -> TCPStore:
    """The store that the launching agent keeps; every rank is its client."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise ConfigurationError(
            "torchrun: its agent keeps no store here; start with --rdzv_backend static or c10d"
        )
    return TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=PATIENCE
    )
