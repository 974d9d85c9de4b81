"""Several processes: data parallelism whose losses are noticed."""

import inspect
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from app.run.errors import AppError, ExitCode, RankLostError
from app.run.ranks import LAUNCHER
from app.run.signals import exit_code_of, requested, starting_processes, waiting
from app.training.lightning_seams import OpenDDPStrategy, OpenLauncher

# The argument was renamed in torch 2.13.
_NO_BUFFER_SYNC = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
    else "broadcast_buffers"
)


class Supervised:
    """What our strategies of several processes have in common: how the ranks meet, and who watches them."""

    cluster_environment: Any
    num_nodes: int
    num_processes: int
    local_rank: int
    node_rank: int

    def setup_distributed(self) -> None:
        """Meets the other ranks; on several nodes that is said first, since it may take until somebody starts them."""
        n_others = self.num_nodes * self.num_processes - 1
        place = f"{self.cluster_environment.main_address}:{self.cluster_environment.main_port}"
        others = f"for {n_others} other rank{'s' if n_others > 1 else ''} at {place}"
        if self.num_nodes > 1 and self.local_rank == 0:
            print(
                f"waiting  {others} (MASTER_ADDR, MASTER_PORT); this is node {self.node_rank} of {self.num_nodes}, "
                "start the others with their NODE_RANK, or all of them with torchrun",
                flush=True,
            )
        with waiting(others):
            super().setup_distributed()  # type: ignore[misc]

    def make_launcher(self) -> "SupervisedLauncher":
        """One that watches the ranks that it starts."""
        return SupervisedLauncher(self.cluster_environment, self.num_processes, self.num_nodes)


class SupervisedDDPStrategy(Supervised, OpenDDPStrategy):
    """Data parallelism in which no rank overwrites another's buffers and no lost rank goes unnoticed.

    Running statistics belong to the global batch and are reduced by their owners; the framework's default
    would replace every rank's buffers with rank zero's at each forward.

    Args:
        process_group_backend: ``gloo`` or ``nccl``; by default what the device calls for.
    """

    def __init__(self, process_group_backend: str | None = None) -> None:
        options: dict[str, Any] = {_NO_BUFFER_SYNC: False, "gradient_as_bucket_view": True}
        super().__init__(process_group_backend=process_group_backend, **options)

    def leave_gradients(self) -> None:
        """From now on a backward pass leaves each rank its own gradients, for somebody else to reduce.

        What PyTorch has put around the module goes: it ties the places where gradients arrive to one stream.
        """
        self.model = self.lightning_module


OnLost = Callable[[int, int], None]


class SupervisedLauncher(OpenLauncher):
    """Starts the other ranks and watches them, in place of an observer that kills on any non-zero exit."""

    #: told the local rank and exit code of a lost process, before this one ends
    on_lost: OnLost | None = None

    def launch(self, function: Callable, *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Starts the ranks, watches them, and runs the function as rank zero.

        Raises:
            RankLostError: the function failed because another rank had ended.
        """
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        os.environ[LAUNCHER] = str(os.getpid())
        with starting_processes():
            self.start_ranks()
        watch = RankWatch(self.procs, self.on_lost)
        watch.start()
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            watch.cancel()
            is_broken = is_broken_connection(error)
            # The others leave by themselves after an agreed stop, and a lost one has an exit code to wait for.
            self._wait_for_children(3.0 if is_broken or isinstance(error, AppError | SystemExit) else 0.0)
            lost = lost_rank(self.procs) if is_broken else None
            self.end_children()
            if is_broken and (asked := requested()) is not None:
                # All were told to stop, and the others have given up this one, or the one that hangs.
                raise SystemExit(int(exit_code_of(asked))) from error
            if lost is not None:
                raise RankLostError(lost_message(*lost)) from error
            raise
        watch.cancel()
        self._wait_for_children(10.0)
        self.end_children()
        return result

    def end_children(self, patience_seconds: float = 1.0) -> None:
        """Asks the ranks that still run to leave, then insists."""
        for signum in (signal.SIGTERM, signal.SIGKILL):
            for process in self.procs:
                if process.poll() is None:
                    process.send_signal(signum)
            self._wait_for_children(patience_seconds)

    def _wait_for_children(self, patience_seconds: float) -> None:
        deadline = time.monotonic() + patience_seconds
        while time.monotonic() < deadline and any(p.poll() is None for p in self.procs):
            time.sleep(0.02)


def lost_rank(processes: Sequence[subprocess.Popen]) -> tuple[int, int] | None:
    """Local rank and exit code of the first process that ended badly; the processes start with rank 1."""
    codes = (process.poll() for process in processes)
    return next(((rank, code) for rank, code in enumerate(codes, start=1) if code), None)


def lost_message(rank: int, code: int) -> str:
    """What a person is told about a lost rank."""
    cause = f"signal {-code}" if code < 0 else f"exit code {code}"
    return (
        f"rank {rank} was lost ({cause}); its message, if it left one, stands above. "
        "Remedy: start the same command again with --resume auto."
    )


def is_broken_connection(error: BaseException) -> bool:
    """Whether an exception is what a collective raises when another rank is gone."""
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in ("gloo", "NCCL"))
    )


class RankWatch(threading.Thread):
    """Ends this process when another rank ended badly; a collective would wait for it for ever.

    Args:
        processes: the other ranks, local rank 1 first.
        on_lost: told which rank ended and how.
    """

    def __init__(self, processes: Sequence[subprocess.Popen], on_lost: OnLost | None):
        super().__init__(daemon=True, name="rank-watch")
        self.processes = processes
        self.on_lost = on_lost
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        self._cancelled.set()

    def run(self) -> None:
        while not self._cancelled.wait(0.5):
            lost = lost_rank(self.processes)
            # An exception of this rank may be what brought the other down: let it speak first.
            if lost is None or self._cancelled.wait(2.0):
                continue
            if requested() is not None:  # we are leaving, in whatever way
                continue
            for process in self.processes:
                if process.poll() is None:
                    process.kill()
            if self.on_lost is not None:
                self.on_lost(*lost)
            print(f"error: {lost_message(*lost)}", file=sys.stderr, flush=True)
            os._exit(ExitCode.RANK_LOST)


class ParentWatch(threading.Thread):
    """Ends this rank when the process that started it is gone; nobody else would.

    Args:
        parent: process id of that process.
    """

    def __init__(self, parent: int):
        super().__init__(daemon=True, name="parent-watch")
        self.parent = parent

    @classmethod
    def of_this_rank(cls) -> "ParentWatch":
        """Watches our launcher, also where it has ended before this is called; else whoever is the parent."""
        return cls(int(os.environ.get(LAUNCHER) or os.getppid()))

    def run(self) -> None:
        while os.getppid() == self.parent:
            time.sleep(0.5)
        print("error: the launching process is gone; this rank ends too", file=sys.stderr, flush=True)
        os._exit(ExitCode.RANK_LOST)
