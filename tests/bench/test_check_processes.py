"""Operators are checked alike by one process and by several."""

import os
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Future
from typing import Any

import pytest
import torch

from app.bench import check_processes
from app.bench.check_operators import check_sizes
from app.bench.check_processes import OperatorChecks, most_processes

CPU = torch.device("cpu")


@pytest.fixture
def checks() -> Iterator[OperatorChecks]:
    with OperatorChecks(check_sizes(quick=True), CPU, 1) as checks:
        yield checks


def test_the_cpu_computes_in_one_process() -> None:
    assert most_processes(CPU) == 1


def test_processes_are_as_many_as_cores_and_memory_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    for cores, gigabytes, expected in ((128, 139, 16), (12, 139, 12), (12, 8, 4), (12, 1, 1)):
        monkeypatch.setattr(check_processes, "available_cores", lambda n=cores: n)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, n=gigabytes: (n << 30, n << 30))
        assert most_processes(gpu) == expected


def test_calls_whose_process_is_lost_are_made_in_this_one(
    checks: OperatorChecks, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost:
        """A pool whose processes are lost after two calls."""

        n_calls = 0

        def submit(self, function: Any, *args: Any) -> "Future[Any]":
            self.n_calls += 1
            if self.n_calls > 4:
                raise BrokenExecutor
            future: Future[Any] = Future()
            if self.n_calls > 2:
                future.set_exception(BrokenExecutor())
            else:
                future.set_result(function(*args))
            return future

        def shutdown(self, cancel_futures: bool) -> None:
            assert cancel_futures

    alone = checks.check("hadamard")
    assert len(alone) == len({finding.where for finding in alone}) > 3
    monkeypatch.setattr(checks, "pool", Lost())
    assert checks.check("hadamard") == alone


@pytest.mark.process
@pytest.mark.stress
def test_several_processes_find_the_same() -> None:
    with OperatorChecks(check_sizes(quick=True), CPU, 1) as checks:
        alone = {name: checks.check(name) for name in ("banked_causal_conv", "ternary")}
    with OperatorChecks(check_sizes(quick=True), CPU, 2) as checks:
        assert checks.pool is not None
        assert {name: checks.check(name) for name in alone} == alone
        for process in checks.pool._processes.values():
            assert process.pid != os.getpid()
