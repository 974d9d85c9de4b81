"""What holds several ranks together: means with gradients, and who watches whom."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from app.run.errors import AppError, RankLostError
from app.run.rank_processes import OtherRanks
from app.run.signals import StopRequests
from app.training.distributed import (
    SupervisedLauncher,
    is_broken_connection,
)
from app.training.options.trainer_rules import is_distributed
from app.training.rank_reduction import mean_over_ranks
from tests.support.application import REPOSITORY
from tests.support.two_ranks import two_ranks

VALUES = torch.tensor([[0.1, 0.7, -0.3], [0.4, -0.2, 0.9]])  # one row per rank


def nonlinear(mean: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A function of the mean, as an auxiliary loss is one; not linear, so that a mean of values differs."""
    return (weight * (mean - 0.5).square()).sum() + mean.exp().sum()


def _rank(rank: int, store: str, results: Connection) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    values = VALUES[rank].clone().requires_grad_()
    weight = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    loss = nonlinear(mean_over_ranks(values), weight)
    loss.backward()
    # What data parallelism does with every parameter's gradient.
    assert weight.grad is not None
    dist.all_reduce(weight.grad)
    results.send([tensor.detach().numpy() for tensor in (loss, values.grad, weight.grad / 2)])
    dist.barrier()
    os._exit(0)


def test_a_mean_over_ranks_has_the_gradient_of_the_whole(tmp_path: Path) -> None:
    found = two_ranks(_rank, tmp_path / "store")
    values = VALUES.clone().requires_grad_()
    weight = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    loss = nonlinear(values.mean(0), weight)
    loss.backward()
    assert values.grad is not None
    assert weight.grad is not None
    for rank, (own_loss, own_gradient, weight_gradient) in enumerate(found):
        torch.testing.assert_close(torch.tensor(own_loss), loss.detach())
        # Parallel training takes the mean over ranks of all gradients: half of this rank's is what counts.
        torch.testing.assert_close(torch.tensor(own_gradient) / 2, values.grad[rank])
        torch.testing.assert_close(torch.tensor(weight_gradient), weight.grad)


class Ended:
    def __init__(self, code: int | None):
        self.code = code

    def poll(self) -> int | None:
        return self.code

    def send_signal(self, signum: int) -> None:
        pass


def test_what_a_broken_connection_looks_like() -> None:
    assert is_broken_connection(RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer"))
    assert is_broken_connection(dist.DistBackendError("NCCL error"))
    assert not is_broken_connection(RuntimeError("shape '[2]' is invalid"))
    assert not is_broken_connection(KeyError("gloo"))


@pytest.mark.parametrize(
    ("code", "raised", "expected"),
    [
        (1, RuntimeError("gloo: Connection closed by peer"), RankLostError),
        (None, RuntimeError("gloo: timed out"), RuntimeError),  # everybody is there: no rank was lost
        (1, KeyError("mine"), KeyError),
        (3, AppError("all ranks say so"), AppError),
    ],
)
def test_whose_failure_it_was(
    monkeypatch: pytest.MonkeyPatch, code: int | None, raised: Exception, expected: type[Exception]
) -> None:
    with pytest.raises(expected):
        launched_and_failed(monkeypatch, code, raised)


def launched_and_failed(monkeypatch: pytest.MonkeyPatch, code: int | None, raised: Exception) -> None:
    """A launch whose own part raises this, with another rank that has ended with the code, or with none yet."""
    others = OtherRanks()
    monkeypatch.setattr(others, "start", lambda n: others.processes.append(Ended(code)))  # type: ignore[arg-type]
    monkeypatch.setattr(SupervisedLauncher, "others", others)
    monkeypatch.setattr(SupervisedLauncher, "meeting_place", lambda self: {})
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(time, "monotonic", iter(range(1_000_000)).__next__)

    class Environment:
        creates_processes_externally = False

        def validate_settings(self, num_devices: int, num_nodes: int) -> None:
            pass

    def function() -> None:
        raise raised

    SupervisedLauncher(Environment(), 2, 1).launch(function)  # type: ignore[arg-type]


@pytest.mark.parametrize("code", [143, None])  # the other has left for the same reason, or hangs
def test_ranks_that_were_all_told_to_stop_are_not_lost(
    monkeypatch: pytest.MonkeyPatch, code: int | None
) -> None:
    requests = StopRequests()
    requests.note(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as leave:
            launched_and_failed(monkeypatch, code, RuntimeError("gloo: Connection closed by peer"))
        assert leave.value.code == 143
    finally:
        requests.restore()


@pytest.mark.parametrize(
    ("devices", "n_nodes", "expected"),
    [
        (1, 1, False),
        (2, 1, True),
        ("2", 1, True),  # as a command line gives it
        ("1", 1, False),
        ([0], 1, False),
        ([0, 1], 1, True),
        ("0,1", 1, True),
        ("0,", 1, False),
        ([3], 1, False),
        (1, 2, True),
        ("auto", 1, False),
    ],
)
def test_whether_there_are_several_processes(devices: Any, n_nodes: int, expected: bool) -> None:
    assert is_distributed({"devices": devices, "num_nodes": n_nodes, "accelerator": "cpu"}) is expected


#: a thread of gloo's is within Python, dropping the tensor of the last collective, while the interpreter is taken down
LEAVING = """
import os, sys, time
import numpy
import torch
from torch import distributed
from app.cli import end_process

class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(4)

class Dropped(numpy.ndarray):
    def __del__(self, sleep=time.sleep):
        sleep(2)

pid = os.fork()
store = distributed.FileStore(sys.argv[1], 2)
os.environ["GLOO_SOCKET_IFNAME"] = "lo"
distributed.init_process_group("gloo", store=store, rank=int(pid == 0), world_size=2)
if pid == 0:
    distributed.all_reduce(torch.ones(1))
    time.sleep(6)
    os._exit(0)
slow = Slow()
distributed.all_reduce(torch.from_numpy(numpy.ones(1, "f").view(Dropped)), async_op=True)
time.sleep(1)
{leave}(0)
"""


@pytest.mark.stress
@pytest.mark.skipif(sys.platform != "linux", reason="the loopback interface has another name")
@pytest.mark.parametrize("leave", ["end_process", "sys.exit"])
def test_a_rank_leaves_with_its_code(tmp_path: Path, leave: str) -> None:
    """Python's own way out is here to show that it would abort."""
    source = LEAVING.replace("{leave}", leave)
    ended = subprocess.run(
        [sys.executable, "-c", source, tmp_path / "store"], cwd=REPOSITORY, capture_output=True, text=True
    )
    if leave == "end_process":
        assert (ended.returncode, ended.stderr) == (0, "")
    else:
        assert ended.returncode == -signal.SIGABRT, ended.stderr
