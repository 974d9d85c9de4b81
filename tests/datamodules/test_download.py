"""Downloading once, from a server on this machine."""

import hashlib
import os
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from app.run.errors import DataError, StorageError
from datamodules import download as download_module
from datamodules import sources
from datamodules.download import Download
from datamodules.sources import open_source

CONTENT = b"First Citizen:\n" * 100


class Server(ThreadingHTTPServer):
    """Serves CONTENT at /good, parts of it on demand, and mistakes elsewhere; counts requests."""

    n_requests = 0
    n_bytes_sent = 0

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.is_over = threading.Event()

    def download(self, name: str) -> Download:
        url = f"http://127.0.0.1:{self.server_port}/{name}"
        return Download(url, "text.txt", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.n_requests += 1
        if self.path == "/absent":
            self.send_error(404)
            return
        bodies = {"/other": CONTENT.upper(), "/longer": CONTENT + b"more", "/short": CONTENT[:500]}
        body = bodies.get(self.path, CONTENT)
        wanted = self.headers.get("Range")
        if wanted and self.path == "/strict":
            self.send_error(416)
            return
        if wanted and self.path != "/deaf":
            first = int(wanted.removeprefix("bytes=").removesuffix("-"))
            body = body[first:]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(CONTENT) - 1}/{len(CONTENT)}")
        else:
            self.send_response(200)
        self.server.n_bytes_sent += len(body)
        self.send_header("Content-Length", str(len(CONTENT) if self.path == "/short" else len(body)))
        self.end_headers()
        self.wfile.write(body[:600] if self.path in ("/reset", "/stalled") else body)
        if self.path == "/reset":
            # A lingering time of 0: the connection ends by a reset and not as it should.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            time.sleep(0.1)
            self.connection.close()
        elif self.path == "/stalled":
            self.server.is_over.wait(10)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.is_over.set()
        running.shutdown()
        thread.join()


def failure(download: Download, data_dir: Path) -> str:
    with pytest.raises(DataError) as caught:
        download.fetch(data_dir)
    message = str(caught.value)
    # Everything that is needed to do it by hand.
    assert all(part in message for part in (download.url, str(data_dir / "text.txt"), download.sha256))
    assert visible(data_dir) == []
    return message


def visible(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def test_downloads_once(server: Server, tmp_path: Path) -> None:
    data_dir = tmp_path / "new" / "data"
    for _ in range(2):
        path = server.download("good").fetch(data_dir)
        assert path == data_dir / "text.txt"
        assert path.read_bytes() == CONTENT
    assert server.n_requests == 1
    assert visible(data_dir) == ["text.txt"]


def test_several_at_once_download_once(server: Server, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: server.download("good").fetch(tmp_path), range(8)))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert server.n_requests == 1


def test_other_content(server: Server, tmp_path: Path) -> None:
    other = hashlib.sha256(CONTENT.upper()).hexdigest()
    assert f"another SHA-256, {other}" in failure(server.download("other"), tmp_path)


def test_longer_content(server: Server, tmp_path: Path) -> None:
    assert "another SHA-256" in failure(server.download("longer"), tmp_path)


def test_an_interrupted_transfer_goes_on_where_it_ended(server: Server, tmp_path: Path) -> None:
    assert "broke off after 500 of 1500 bytes" in failure(server.download("short"), tmp_path)
    server.n_bytes_sent = 0
    assert server.download("good").fetch(tmp_path).read_bytes() == CONTENT
    assert server.n_bytes_sent == 1000
    assert sorted(os.listdir(tmp_path)) == [".text.txt.lock", "text.txt"]


def test_a_server_that_sends_no_parts_sends_the_whole(server: Server, tmp_path: Path) -> None:
    failure(server.download("short"), tmp_path)
    assert server.download("deaf").fetch(tmp_path).read_bytes() == CONTENT


def test_a_server_that_refuses_the_part_sends_the_whole(server: Server, tmp_path: Path) -> None:
    failure(server.download("short"), tmp_path)
    assert server.download("strict").fetch(tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["reset", "stalled"])
def test_a_connection_that_breaks(
    server: Server, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "_TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(download_module, "_CHUNK_BYTES", 100)
    assert "the transfer broke off (" in failure(server.download(name), tmp_path)
    server.n_bytes_sent = 0
    assert server.download("good").fetch(tmp_path).read_bytes() == CONTENT
    assert server.n_bytes_sent == len(CONTENT) - 600


def test_a_failure_of_the_encryption_is_none_of_the_disk(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> Any:
        raise ssl.SSLError(1, "decryption failed")

    monkeypatch.setattr("http.client.HTTPResponse.read", broken)
    assert "the transfer broke off (" in failure(server.download("good"), tmp_path)


@pytest.mark.parametrize("n_kept", [1, 1499, 1500, 1501])
def test_what_was_kept_of_another_file_is_given_up(server: Server, tmp_path: Path, n_kept: int) -> None:
    (tmp_path / ".text.txt.part").write_bytes(b"x" * n_kept)
    assert server.download("good").fetch(tmp_path).read_bytes() == CONTENT


def test_a_process_killed_during_a_transfer_leaves_what_goes_on(server: Server, tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from datamodules import download\n"
        "def die(*_): os.kill(os.getpid(), 9)\n"
        "os.fsync = die\n"
        "download.Download(sys.argv[1], 'text.txt', 1500, sys.argv[2]).fetch(Path(sys.argv[3]))\n"
    )
    download = server.download("short")
    words = [sys.executable, "-c", code, download.url, download.sha256, str(tmp_path)]
    assert subprocess.run(words, check=False).returncode == -9
    assert visible(tmp_path) == []
    server.n_bytes_sent = 0
    assert server.download("good").fetch(tmp_path).read_bytes() == CONTENT
    assert server.n_bytes_sent == 1000


def test_not_found(server: Server, tmp_path: Path) -> None:
    assert "Not Found" in failure(server.download("absent"), tmp_path)


def test_no_network(server: Server, tmp_path: Path) -> None:
    download = server.download("good")
    server.server_close()  # nobody listens there any more
    assert "the download failed (" in failure(download, tmp_path)


def test_a_file_put_there_by_hand(server: Server, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(CONTENT)
    assert server.download("good").fetch(tmp_path).read_bytes() == CONTENT
    assert server.n_requests == 0


def test_a_wrong_file_put_there_by_hand_is_kept_and_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(b"mine")
    download = server.download("good")
    with pytest.raises(DataError, match="is not the expected") as caught:
        download.fetch(tmp_path)
    assert hashlib.sha256(b"mine").hexdigest() in str(caught.value)
    assert download.sha256 in str(caught.value)
    assert (tmp_path / "text.txt").read_bytes() == b"mine"
    assert server.n_requests == 0


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"text\.txt: cannot be written"):
        server.download("good").fetch(tmp_path / "file" / "data")


def test_tinyshakespeare_is_the_source_of_that_name(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "TINYSHAKESPEARE", server.download("good"))
    source = open_source("tinyshakespeare", str(tmp_path))
    assert source.name == "tinyshakespeare"
    assert "".join(source.pieces()) == CONTENT.decode()
