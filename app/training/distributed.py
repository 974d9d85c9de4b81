"""Several processes: data parallelism whose losses are noticed."""

import inspect
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from app.options import PositiveInt
from app.run.errors import AppError, RankLostError
from app.run.rank_processes import OTHERS, lost_message, rank_zero
from app.run.ranks import is_torchrun
from app.run.signals import exit_code_of, requested, waiting
from app.training.hang_watch import HangWatch, StoreNotes
from app.training.lightning_seams import OpenDDPStrategy, OpenLauncher
from app.training.local_store import LocalNotes, local_meeting, meet

# The argument was renamed in torch 2.13.
_NO_BUFFER_SYNC = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
    else "broadcast_buffers"
)


def limit_of_collectives(timeout_seconds: int) -> timedelta:
    """The library's own limit: later than ours, which knows more."""
    return timedelta(seconds=max(1800, 2 * timeout_seconds))


class Supervised:
    """What our strategies of several processes have in common: how the ranks meet, and who watches them."""

    cluster_environment: Any
    num_nodes: int
    num_processes: int
    local_rank: int
    global_rank: int
    timeout_seconds: int
    #: notes this rank's progress, once the ranks are about to meet
    watch: HangWatch | None = None

    def setup_distributed(self) -> None:
        """Meets the other ranks."""
        if (zero := rank_zero()) is not None:
            os.environ.update(zero.receive("meet")[0])
        n_others = self.num_nodes * self.num_processes - 1
        others = f"for {n_others} other rank{'s' if n_others > 1 else ''}"
        if self.num_nodes > 1:
            others += f" at {self.cluster_environment.main_address}:{self.cluster_environment.main_port}"
        self.set_world_ranks()  # type: ignore[attr-defined]
        where = (self.cluster_environment.main_address, self.cluster_environment.main_port)
        with waiting(others):
            is_local = meet(self)
            notes = LocalNotes.of_this_machine if is_local else partial(StoreNotes.connected, where)
            self.watch = HangWatch(notes, self.global_rank, n_others + 1, self.timeout_seconds)
            self.watch.start()
            super().setup_distributed()  # type: ignore[misc]

    def teardown(self) -> None:
        """The ranks do not meet again."""
        if self.watch is not None:
            self.watch.close()
        super().teardown()  # type: ignore[misc]

    def make_launcher(self) -> "SupervisedLauncher":
        """One that watches the ranks that it starts."""
        return SupervisedLauncher(self.cluster_environment, self.num_processes, self.num_nodes)


class SupervisedDDPStrategy(Supervised, OpenDDPStrategy):
    """Data parallelism in which no rank overwrites another's buffers and no lost rank goes unnoticed.

    Running statistics belong to the global batch and are reduced by their owners; the framework's default
    would replace every rank's buffers with rank zero's at each forward.

    Args:
        process_group_backend: ``gloo`` or ``nccl``; by default what the device calls for.
        timeout_seconds: without progress of any rank, after which the run ends and names the rank that is behind. A
            validation batch, a step and a checkpoint have to take less.
    """

    def __init__(self, process_group_backend: str | None = None, timeout_seconds: PositiveInt = 900) -> None:
        options: dict[str, Any] = {_NO_BUFFER_SYNC: False, "gradient_as_bucket_view": True}
        options["timeout"] = limit_of_collectives(timeout_seconds)
        super().__init__(process_group_backend=process_group_backend, **options)
        self.timeout_seconds = timeout_seconds

    def leave_gradients(self) -> None:
        """From now on a backward pass leaves each rank its own gradients, for somebody else to reduce.

        What PyTorch has put around the module goes: it ties the places where gradients arrive to one stream.
        """
        self.model = self.lightning_module


class SupervisedLauncher(OpenLauncher):
    """Meets the ranks that were started early, and starts those whose number only the framework knows.

    Attributes:
        others: the ranks that this process has started.
    """

    others = OTHERS

    def launch(self, function: Callable, *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Tells the other ranks where to meet, and runs the function as rank zero.

        Raises:
            RankLostError: the function failed because another rank had ended.
        """
        others, n_others = self.others, self.num_processes - 1
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if len(others.processes) != n_others:
            others.end([signal.SIGKILL])
            others.start(n_others)
        self.procs = others.processes
        with local_meeting(self.num_processes) as place:
            others.say("meet", lambda: (None, self.meeting_place() | place))
            return self._run(function, *args, **kwargs)

    def _run(self, function: Callable, *args: Any, **kwargs: Any) -> Any:
        others = self.others
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            others.cancel_watch()
            is_broken = is_broken_connection(error)
            # The others leave by themselves after an agreed stop, and a lost one has an exit code to wait for.
            others.wait(3.0 if is_broken or isinstance(error, AppError | SystemExit) else 0.0)
            lost = others.lost if is_broken else None
            others.end([signal.SIGTERM, signal.SIGKILL])
            if is_broken and (asked := requested()) is not None:
                # All were told to stop, and the others have given up this one, or the one that hangs.
                raise SystemExit(int(exit_code_of(asked))) from error
            if lost is not None:
                raise RankLostError(lost_message(*lost)) from error
            raise
        others.cancel_watch()
        others.wait(10.0)
        others.end([signal.SIGTERM, signal.SIGKILL])
        return result


@contextmanager
def broken_connections_told() -> Iterator[None]:
    """Of ranks that torchrun has started each says itself what a broken connection means.

    Raises:
        RankLostError: in place of the error of a collective.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_torchrun() or not is_broken_connection(error):
            raise
        if (asked := requested()) is not None:
            raise SystemExit(int(exit_code_of(asked))) from error
        raise RankLostError(
            f"another rank was lost, or the network to it ({str(error).splitlines()[0]}); what it said stands in its "
            "own output. Remedy: start the same command again on all hosts with --resume auto."
        ) from error


def is_broken_connection(error: BaseException) -> bool:
    """Whether an exception is what a collective raises when another rank is gone."""
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in ("gloo", "NCCL"))
    )
