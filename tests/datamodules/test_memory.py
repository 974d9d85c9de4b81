"""Memory stays bounded whatever the size of a text; ``-rP`` shows the figures."""

import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.datamodules.bench_prepare import watched

LIMIT_BYTES = 1_500_000_000
READ = (
    "import sys\n"
    "from datamodules import CharDataModule, TextDataModule\n"
    "path, kind, cache = sys.argv[1:]\n"
    "size = {'word': 30_000}.get(kind)\n"
    "data = CharDataModule(path=path, data_dir=cache) if kind == 'in place' else TextDataModule(path, tokenizer=kind, max_vocab_size=size, cache_dir=cache)\n"
    "print(sum(map(len, (data.check_source().train, data.check_source().val))))\n"
)
REPEATED = {"one line": b"a lazy dog jumps over ", "one word": b"alazydogjumpsoversomemore"}


ROW_GROUP = "one row group"
LEAST_TOKENS = {("word", "one word"): 900, ("bpe", "one word"): 500_000}  # a word is cut into parts


def write(path: Path, form: str, n_bytes: int) -> None:
    """A text without line ends (words again and again, one word, a new word each time), or rows unpacked at once."""
    if form == ROW_GROUP:
        rows = pa.array(
            [f"{i} a lazy dog jumps over " * 40 for i in range(n_bytes // 1000)], pa.large_string()
        )
        pq.write_table(pa.table({"text": rows}), path, row_group_size=len(rows), use_dictionary=False)
        return
    with path.open("wb") as file:
        number = 0
        while file.tell() < n_bytes:
            if form in REPEATED:
                file.write(REPEATED[form] * 40_000)
            else:
                new = (f"{i * 2654435761 % (1 << 32):08x} " for i in range(number, number + 100_000))
                file.write("".join(new).encode())
                number += 100_000


@pytest.mark.stress
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    ("kind", "form"),
    [(kind, form) for kind in ("in place", "byte", "char", "word", "bpe") for form in REPEATED]
    + [("word", "new words"), ("bpe", "new words"), ("byte", ROW_GROUP)],
)
def test_a_gigabyte(tmp_path: Path, kind: str, form: str) -> None:
    path = tmp_path / ("text.parquet" if form == ROW_GROUP else "text.txt")
    write(path, form, 1_000_000_000 if kind != "bpe" else 150_000_000)  # byte pairs take a minute per 100 MB
    words = [sys.executable, "-c", READ, str(path), kind, str(tmp_path / "cache")]
    began = time.monotonic()
    ended, peak = watched(words)
    assert ended.returncode == 0, ended.stderr
    seconds, size = time.monotonic() - began, path.stat().st_size
    print(f"{kind}, {form}: {size / 1e6:.0f} MB in {seconds:.0f} s, at most {peak / 1e6:.0f} MB of memory")
    assert int(ended.stdout) > LEAST_TOKENS.get((kind, form), 1_000_000)
    assert peak < LIMIT_BYTES
