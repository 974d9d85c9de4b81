"""Several processes: data parallelism whose losses are noticed."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from app.run.errors import ExitCode


class SupervisedDDPStrategy(DDPStrategy):
    """Data parallelism in which no rank overwrites another's buffers and no lost rank goes unnoticed.

    Running statistics belong to the global batch and are reduced by their owners; the framework's default
    would replace every rank's buffers with rank zero's at each forward.

    Args:
        process_group_backend: ``gloo`` or ``nccl``; by default what the device calls for.
        kwargs: passed on to ``DistributedDataParallel``.
    """

    def __init__(self, process_group_backend: str | None = None, **kwargs: Any) -> None:
        super().__init__(
            process_group_backend=process_group_backend,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            **kwargs,
        )

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        if not self.cluster_environment.creates_processes_externally:
            self._launcher = SupervisedLauncher(self.cluster_environment, self.num_processes, self.num_nodes)
            self._rdzv_store = None


class SupervisedLauncher(_SubprocessScriptLauncher):
    """Starts the other ranks and watches them, in place of an observer that kills on any non-zero exit."""

    #: told the local rank and exit code of a lost process, before this one ends
    on_lost: Callable[[int, int], None] | None = None

    def launch(self, function: Callable, *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Starts the ranks, watches them, and runs the function as rank zero."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        self._call_children_scripts()
        watch = RankWatch(self.procs, self.on_lost)
        watch.start()
        try:
            return function(*args, **kwargs)
        except BaseException:
            watch.cancel()
            self.end_children()
            raise

    def end_children(self, patience_seconds: float = 5.0) -> None:
        """Waits for the other ranks to leave by themselves, then asks, then insists."""
        for step in (None, signal.SIGTERM, signal.SIGKILL):
            for process in self.procs:
                if step is not None and process.poll() is None:
                    process.send_signal(step)
            deadline = time.monotonic() + patience_seconds
            while time.monotonic() < deadline and any(p.poll() is None for p in self.procs):
                time.sleep(0.05)


class RankWatch(threading.Thread):
    """Ends this process when another rank ended badly; a collective would wait for it for ever.

    Args:
        processes: the other ranks, local rank 1 first.
        on_lost: told which rank ended and how.
    """

    def __init__(self, processes: list[subprocess.Popen], on_lost: Callable[[int, int], None] | None):
        super().__init__(daemon=True, name="rank-watch")
        self.processes = processes
        self.on_lost = on_lost
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Stops watching."""
        self._cancelled.set()

    def run(self) -> None:
        """Looks twice a second."""
        while not self._cancelled.wait(0.5):
            codes = [process.poll() for process in self.processes]
            if all(code == 0 for code in codes):
                return
            lost = next(((rank, code) for rank, code in enumerate(codes, start=1) if code), None)
            # An exception of this rank may be what brought the other down: let it speak first.
            if lost is None or self._cancelled.wait(2.0):
                continue
            for process in self.processes:
                if process.poll() is None:
                    process.kill()
            rank, code = lost
            if self.on_lost is not None:
                self.on_lost(rank, code)
            cause = f"signal {-code}" if code < 0 else f"exit code {code}"
            print(
                f"error: rank {rank} was lost ({cause}); its message, if it left one, stands above. "
                "Remedy: start the same command again with --resume auto.",
                file=sys.stderr,
                flush=True,
            )
            os._exit(ExitCode.RANK_LOST)
