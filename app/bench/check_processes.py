"""Checks of operators spread over processes: on a GPU nearly all of their time is that of compilers.

A kernel is compiled for each number format and each kind of size, up to a hundred times for an operator and for seconds
each. A process compiles one at a time; what one has compiled the others read from Triton's cache.
"""

import contextlib
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor

import torch

from app.bench.check_operators import Call, calls_of, check_call
from app.bench.report import Finding
from app.ops import case
from app.ops.case import Size
from app.run.machine import available_cores
from app.training.reproducible import make_reproducible

#: memory of a GPU that a process takes beside its tensors, and for them
BYTES_PER_PROCESS = 2 << 30
#: each also takes some 2 GiB of the host's memory, and a container may grant less than all processors
MOST_PROCESSES = 16


def most_processes(device: torch.device) -> int:
    """One for each processor where kernels are compiled, if the device has memory for them; one elsewhere.

    Args:
        device: that operators are checked on.
    """
    if device.type != "cuda":
        return 1
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(MOST_PROCESSES, available_cores(), free // BYTES_PER_PROCESS))


class OperatorChecks(contextlib.AbstractContextManager["OperatorChecks"]):
    """Checks one operator after the other, each in all processes.

    Args:
        sizes: of the calls.
        device: where they compute.
        n_processes: at once; 1 checks in this one.
    """

    def __init__(self, sizes: Sequence[Size], device: torch.device, n_processes: int):
        self.sizes = sizes
        self.device = device
        self.pool: ProcessPoolExecutor | None = None
        if n_processes > 1:
            # Started anew: what has used a GPU cannot be forked.
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(n_processes, context, initializer=_begin, initargs=(device,))

    def __exit__(self, *raised: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def check(self, operator: str) -> list[Finding]:
        """Every call of an operator by each of its forms.

        Args:
            operator: one of :func:`app.ops.case.operators`.
        """
        described = case.cases(operator)
        calls = [
            call for name, one in described.items() for call in calls_of(name, one, self.sizes, self.device)
        ]
        submitted = self._submit(operator, calls)
        findings = []
        for call in calls:
            finding = None
            if call in submitted:
                # The GPU takes one process at a time, or a compiler took its own along: the rest is for this one.
                with contextlib.suppress(BrokenExecutor):
                    finding = submitted[call].result()
            findings.append(finding or check_call(described[call.name], call, self.device))
        return findings

    def _submit(self, operator: str, calls: Sequence[Call]) -> Mapping[Call, "Future[Finding]"]:
        submitted: dict[Call, Future[Finding]] = {}
        if self.pool is not None:
            # What takes longest first; then calls of unlike sizes side by side, so that one of those that are alike
            # finds what another has compiled.
            with contextlib.suppress(BrokenExecutor):
                for call in sorted(calls, key=lambda call: (-call.size.N, call.number)):
                    submitted[call] = self.pool.submit(_check, operator, call, self.device)
        return submitted


def _begin(device: torch.device) -> None:
    make_reproducible(device)
    torch.set_num_threads(1)
    torch.zeros(1, device=device)


def _check(operator: str, call: Call, device: torch.device) -> Finding:
    return check_call(case.cases(operator)[call.name], call, device)
