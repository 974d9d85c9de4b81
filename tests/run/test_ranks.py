"""Numbers in the environment: whose they are."""

import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from app.run import ranks
from app.run.errors import ConfigurationError

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No launch at all, and none left behind."""
    before = dict(os.environ)
    for name in (*ranks.NUMBERS, *ranks.MEETING_PLACE, "SLURM_NTASKS", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    yield
    for name in {*os.environ} - {*before}:
        del os.environ[name]


def settled(variables: Mapping[str, str], may_be_several: bool = True) -> dict[str, str]:
    """What is left of these variables."""
    os.environ.update(variables)
    ranks.settle(may_be_several)
    return {name: os.environ[name] for name in variables if name in os.environ}


@pytest.fixture
def port() -> Iterator[str]:
    """Somebody listens there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield str(server.getsockname()[1])


@pytest.fixture
def unused_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


@pytest.mark.parametrize("value", ["1", "0", "abc", "-1", ""])
@pytest.mark.parametrize("name", ranks.NUMBERS)
def test_a_number_without_a_launch_is_left_over(
    name: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if (name, value) == ("SLURM_PROCID", "0"):
        assert settled({name: value}) == {name: value}
        assert capsys.readouterr().err == ""
        return
    assert settled({name: value}) == {}
    assert capsys.readouterr().err == f"note: {name}: left over from another launch and ignored; unset it\n"
    assert ranks.number() == 0
    ranks.settle(True)
    assert capsys.readouterr().err == ""


def test_where_ranks_meet_is_left_over_with_their_numbers_only(capsys: pytest.CaptureFixture[str]) -> None:
    place = {"MASTER_ADDR": "node17", "MASTER_PORT": "29500"}
    assert settled(place) == place
    assert capsys.readouterr().err == ""
    assert settled(place | {"WORLD_SIZE": "2"}) == {}
    assert capsys.readouterr().err.startswith("note: WORLD_SIZE, MASTER_ADDR, MASTER_PORT: left over")


def test_torchrun_is_believed_where_its_agent_answers(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    variables = TORCHRUN | {"MASTER_PORT": port, "SLURM_PROCID": "3"}
    assert settled(variables) == variables
    assert ranks.is_torchrun()
    assert ranks.number() == 1
    # Not for a command that knows of no other processes, nor what our own launcher would have said.
    assert settled(variables | {ranks.LAUNCHER: "1"}) == variables
    assert "note: ARCHLAB_LAUNCHER: left over" in capsys.readouterr().err
    assert settled(variables, may_be_several=False) == {}


def test_torchrun_without_an_agent(unused_port: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        settled(TORCHRUN | {"MASTER_PORT": unused_port})
    (problem,) = refused.value.problems
    assert f"torchrun's agent does not answer at 127.0.0.1:{unused_port}" in problem
    assert "unset TORCHELASTIC_RUN_ID" in problem
    # Alone nobody is waited for.
    assert settled({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}) == {}


@pytest.mark.parametrize("missing", ["RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR"])
def test_a_part_of_what_torchrun_says_is_left_over(missing: str, port: str) -> None:
    assert settled({k: v for k, v in (TORCHRUN | {"MASTER_PORT": port}).items() if k != missing}) == {}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("RANK", "abc", "RANK: 'abc' is no whole number"),
        ("RANK", "2", "RANK: 2, but WORLD_SIZE is 2"),
        ("RANK", "-1", "RANK: '-1' is no whole number"),
        ("RANK", "", "RANK: '' is no whole number"),
        ("LOCAL_RANK", "5", "LOCAL_RANK: 5, but LOCAL_WORLD_SIZE is 2"),
        ("LOCAL_RANK", "٣", "LOCAL_RANK: '٣' is no whole number"),
        ("WORLD_SIZE", "two", "WORLD_SIZE: 'two' is no whole number"),
        ("MASTER_PORT", "http", "MASTER_PORT: 'http' is no whole number"),
        ("MASTER_PORT", "99999", "does not answer at 127.0.0.1:99999"),
    ],
)
def test_nonsense_in_a_launch_of_torchrun_is_refused(name: str, value: str, said: str, port: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        settled(TORCHRUN | {"MASTER_PORT": port} | {name: value})
    (problem,) = refused.value.problems
    assert said in problem


def test_ranks_of_our_launcher(capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        variables = {
            ranks.LAUNCHER: str(os.getppid()),
            ranks.CHANNEL: channel_of(theirs),
            "LOCAL_RANK": "1",
            "MASTER_ADDR": "127.0.0.1",
        }
        assert settled(variables) == variables
        assert ranks.number() == 1
        assert capsys.readouterr().err == ""
        # Also where the launcher is gone by now: what holds its socket never goes on by itself.
        variables |= {ranks.LAUNCHER: "1234567"}
        assert settled(variables) == variables
        # What a callback of the launcher's starts is no rank; neither is a child of a rank, nor one of long ago.
        for other in (
            {"LOCAL_RANK": "0"},
            {ranks.LAUNCHER: ""},
            {ranks.LAUNCHER: "abc"},
            *({ranks.CHANNEL: value} for value in ("", "{}", "1:2", f"{theirs.fileno()}:1", f"{1 << 70}:1")),
        ):
            assert settled(variables | other) == {}
        with tempfile.TemporaryFile() as file:  # of that number and inode, but nobody speaks there
            assert settled(variables | {ranks.CHANNEL: channel_of(file)}) == {}
    assert settled(variables) == {}


def channel_of(opened: Any) -> str:
    return f"{opened.fileno()}:{os.fstat(opened.fileno()).st_ino}"


@pytest.mark.parametrize("procid", ["0", "3"])
def test_several_tasks_of_a_job_are_refused_by_each(procid: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError, match="SLURM_NTASKS is 4: start one task per node"):
        settled({"SLURM_NTASKS": "4", "SLURM_PROCID": procid})
    assert capsys.readouterr().err == ""
    for others in ({"SLURM_JOB_NAME": "bash"}, {"SLURM_NTASKS": "1"}, {"SLURM_NTASKS": "abc"}):
        assert settled({"SLURM_NTASKS": "4", "SLURM_PROCID": "3"} | others).keys() == {
            "SLURM_NTASKS",
            *others,
        }
        del os.environ[next(iter(others))]
