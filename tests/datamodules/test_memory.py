"""Memory stays bounded whatever the size of a text."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.datamodules.bench_prepare import memory_of_tree

LIMIT_BYTES = 1_500_000_000
READ = (
    "import sys\n"
    "from datamodules import CharDataModule, TextDataModule\n"
    "path, kind, cache = sys.argv[1:]\n"
    "data = CharDataModule(path=path, data_dir=cache) if kind == 'in place' else TextDataModule(path, tokenizer=kind, cache_dir=cache)\n"
    "print(sum(map(len, (data.check_source().train, data.check_source().val))))\n"
)


@pytest.mark.stress
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("form", ["one line", "one word"])
@pytest.mark.parametrize("kind", ["in place", "byte", "char", "word", "bpe"])
def test_a_gigabyte(tmp_path: Path, kind: str, form: str) -> None:
    path = tmp_path / "text.txt"
    piece = b"a lazy dog jumps over " if form == "one line" else b"alazydogjumpsoversomemore"
    n_bytes = 1_000_000_000 if kind != "bpe" else 150_000_000  # byte pairs take minutes per 100 MB
    with path.open("wb") as file:
        for _ in range(n_bytes // (len(piece) * 40_000)):
            file.write(piece * 40_000)
    words = [sys.executable, "-c", READ, str(path), kind, str(tmp_path / "cache")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.1):
            peak = max(peak, memory_of_tree(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, err = process.communicate()
    done.set()
    watcher.join()
    assert process.returncode == 0, err
    # A word of a gigabyte is cut into words of a segment each.
    assert int(out) > (900 if (kind, form) == ("word", "one word") else 1_000_000)
    assert peak < LIMIT_BYTES
