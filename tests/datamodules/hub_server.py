"""A small Hugging Face hub on the loopback interface: one data set, whose files can come broken."""

import hashlib
import json
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class HubServer(ThreadingHTTPServer):
    """Serves the files of a folder as those of every data set, at every revision.

    Args:
        root: the files; parquet files count as large ones, which the hub names by their SHA-256.

    Attributes:
        sent: paths of the files whose content was asked for, in order.
        cut: a file's path, to the bytes after which its transfer breaks off.
        flipped: paths of files that come in full length with one bit changed.
    """

    daemon_threads = True

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.sent: list[str] = []
        self.cut: dict[str, int] = {}
        self.flipped: set[str] = set()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        """What ``HF_ENDPOINT`` is to be."""
        return f"http://127.0.0.1:{self.server_port}"

    def entries(self, folder: str) -> list[dict[str, object]]:
        """Files and folders directly below a folder, as the hub lists them."""
        return [
            self.entry(path)
            if path.is_file()
            else {
                "type": "directory",
                "oid": "0" * 40,
                "size": 0,
                "path": path.relative_to(self.root).as_posix(),
            }
            for path in sorted((self.root / folder).iterdir())
        ]

    def entry(self, path: Path) -> dict[str, object]:
        """One file, as the hub lists it."""
        content = path.read_bytes()
        large = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return {
            "type": "file",
            "oid": hashlib.sha1(content).hexdigest(),
            "size": len(content),
            "path": path.relative_to(self.root).as_posix(),
        } | ({"lfs": large} if path.suffix == ".parquet" else {})


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        parts = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).strip("/").split("/")
        if parts[0] == "datasets" and "resolve" in parts:  # datasets/OWNER/NAME/resolve/REVISION/FILE
            self._send_file("/".join(parts[5:]), revision=parts[4])
        elif parts[:2] == ["api", "datasets"] and "tree" in parts:
            self._send_json(self.server.entries("/".join(parts[6:])))
        elif parts[:2] == ["api", "datasets"]:
            revision = parts[5] if len(parts) > 5 else "0" * 40
            self._send_json(
                {"id": "/".join(parts[2:4]), "sha": revision, "private": False, "siblings": [], "tags": []}
            )
        else:
            self._send(404, {}, b"")

    def _send_file(self, name: str, revision: str) -> None:
        path = self.server.root / name
        if not path.is_file():
            self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": revision}, b"")
            return
        content, entry = path.read_bytes(), self.server.entry(path)
        large = entry.get("lfs", entry)
        assert isinstance(large, dict)
        headers = {"X-Repo-Commit": revision, "ETag": f'"{large["oid"]}"'}
        if self.command == "GET":
            self.server.sent.append(name)
            if name in self.server.flipped:
                middle = len(content) // 2
                content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        self._send(200, headers, content, self.server.cut.get(name))

    def _send_json(self, values: object) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(values).encode())

    def _send(self, code: int, headers: dict[str, str], body: bytes, cut: int | None = None) -> None:
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")  # a server that is gone answers nothing more
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
