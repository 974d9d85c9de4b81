"""What ranks of torchrun's say to each other through the store of its agent."""

import socket
import threading

import pytest
from torch.distributed import TCPStore

from app.run.errors import ConfigurationError, RankLostError
from app.training import rendezvous


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    """The store of an agent that has started this process as rank 1."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    variables = {
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "RANK": "1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return store


def test_a_plan_is_waited_for(agent: TCPStore) -> None:
    threading.Timer(0.3, rendezvous.send, ["the plan"]).start()
    assert rendezvous.receive() == "the plan"


def test_each_start_has_its_own(agent: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    rendezvous.send("of the first start")
    rendezvous.refuse()
    assert rendezvous.is_told_by_rank_zero(0.2)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not rendezvous.is_told_by_rank_zero(0.2)
    rendezvous.send("of the second")
    assert rendezvous.receive() == "of the second"


def test_rank_zero_was_refused(agent: TCPStore) -> None:
    rendezvous.refuse()
    with pytest.raises(ConfigurationError, match="its message says why"):
        rendezvous.receive()


def test_rank_zero_never_comes(
    agent: TCPStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rendezvous, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(rendezvous, "_NOTICE_SECONDS", 0.1)
    with pytest.raises(RankLostError, match="rank zero has not said"):
        rendezvous.receive()
    assert capsys.readouterr().err == "rank 1 waits for rank zero to say which run this is\n"


def test_something_else_answers(agent: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "CONNECT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("MASTER_PORT", str(server.getsockname()[1]))
        with pytest.raises(ConfigurationError, match=r"is not its agent's store \(no answer in 0 s\)"):
            rendezvous.receive()
        assert not rendezvous.is_told_by_rank_zero(0.1)
        rendezvous.refuse()


def test_an_agent_without_a_store(agent: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    with pytest.raises(ConfigurationError, match="--rdzv_backend static or c10d"):
        rendezvous.send("the plan")
