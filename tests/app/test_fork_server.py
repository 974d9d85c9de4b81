"""The server that tests fork from is what it is taken for: an interpreter that has only imported."""

import socket
import threading
import time
from pathlib import Path

import pytest

from tests.support import fork_server
from tests.support.application import Application

pytestmark = pytest.mark.process

LOOK = """
import threading, torch
assert threading.active_count() == 1
assert not torch.cuda.is_initialized()
# The generator as it was made: its state holds 1 until the first number is drawn.
assert torch.default_generator.get_state()[8] == 1
torch.rand(1)
assert torch.default_generator.get_state()[8] != 1
"""


def test_it_has_one_thread_and_has_computed_nothing(application: Application, tmp_path: Path) -> None:
    assert len(list(Path(f"/proc/{application.server.pid}/task").iterdir())) == 1
    ended = application.run("--version", cwd=tmp_path, prelude=LOOK)
    assert ended.code == 0, ended


def test_whoever_finds_it_may_connect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "socket"
    found = []

    class Watched(socket.socket):
        def listen(self, *_: int) -> None:
            found.append(path.exists())
            super().listen()

    monkeypatch.setattr(fork_server.socket, "socket", Watched)
    server = threading.Thread(target=fork_server._listen, args=(str(path),))
    server.start()
    deadline = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < deadline
    monkeypatch.undo()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))  # once, as it was found
        client.sendall(b'"owner"\n')
    server.join(10)
    assert not server.is_alive()
    assert found == [False]
    assert [entry.name for entry in tmp_path.iterdir()] == ["socket"]


def test_a_child_has_its_own_folder_environment_and_end(application: Application, tmp_path: Path) -> None:
    looks = "import os, sys; print(os.getcwd(), os.environ.get('MARK'), sys.argv); sys.exit(7)"
    ended = application.run("fit", "x", cwd=tmp_path, env={"MARK": "set"}, prelude=looks)
    assert ended.out.startswith(f"{tmp_path} set "), ended
    assert ended.code == 7
