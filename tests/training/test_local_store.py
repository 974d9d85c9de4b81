"""Ranks of one machine meet at a file in memory and talk through the loopback interface; others in their own way."""

import os
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from app.run import ranks
from app.run.errors import ConfigurationError
from app.training.local_store import local_meeting, meet
from tests.support.two_ranks import two_ranks

CHOICES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
VARIABLES = (ranks.MEETING, ranks.TORCHRUN, "WORLD_SIZE", "LOCAL_WORLD_SIZE", *CHOICES)

needs_linux = pytest.mark.skipif(
    not Path("/proc/self/fd").is_dir(), reason="needs files in memory, as Linux has"
)


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # to be put back
        monkeypatch.delenv(name)


def strategy(rank: int, num_nodes: int = 1) -> Any:
    return SimpleNamespace(
        num_nodes=num_nodes,
        num_processes=2,
        local_rank=rank,
        root_device=torch.device("cpu"),
        _timeout=timedelta(seconds=30),
        _get_process_group_backend=lambda: "gloo",
    )


def listens_at() -> set[str]:
    """Addresses at which this process takes connections, as the kernel writes them: 0100007F is 127.0.0.1."""
    names = {os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
    rows = [
        row.split()
        for kind in ("tcp", "tcp6")
        for row in Path(f"/proc/self/net/{kind}").read_text().splitlines()
    ]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in names}


def _rank(rank: int, store: str, results: Connection) -> None:
    meet(strategy(rank))
    total = torch.tensor(float(rank + 1))
    dist.all_reduce(total)
    dist.new_group(backend="gloo")
    results.send((float(total), listens_at()))
    dist.barrier()
    os._exit(0)


@needs_linux
def test_two_ranks_listen_on_this_machine_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MASTER_ADDR", "192.0.2.1")  # nobody meets there
    with local_meeting(2) as place:
        found = two_ranks(_rank, tmp_path)
    assert len(place) == 2
    assert [name for name in place if name in os.environ] == []
    assert [path for path in place.values() if os.path.exists(path)] == []
    assert [total for total, _ in found] == [3.0, 3.0]
    assert {place for _, places in found for place in places} == {"0100007F"}


@needs_linux
def test_pytorchs_own_store_listens_everywhere() -> None:
    """Why the ranks meet elsewhere; also where it is told 127.0.0.1."""
    before = listens_at()
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    assert listens_at() - before in ({"0" * 8}, {"0" * 32})
    del store


@pytest.mark.parametrize(
    ("variables", "num_nodes", "is_local"),
    [
        ({}, 1, True),
        ({}, 2, False),
        ({ranks.TORCHRUN: "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, 1, True),
        ({ranks.TORCHRUN: "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}, 1, False),
        ({ranks.TORCHRUN: "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, 2, False),
    ],
)
def test_the_interface_is_chosen_where_all_ranks_are_here(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], num_nodes: int, is_local: bool
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(CHOICES[1], "eth7")
    meet(strategy(0, num_nodes))
    assert (os.environ.get(CHOICES[0], "")[:2] == "lo") is is_local
    assert os.environ[CHOICES[1]] == "eth7"  # a user's
    assert not dist.is_initialized()  # left to the framework, to torchrun's store


def test_a_rank_that_cannot_open_the_meeting_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ranks.MEETING, "/proc/1/fd/none")
    with pytest.raises(ConfigurationError, match="cannot be opened by rank 1; start the ranks with torchrun"):
        meet(strategy(1))
