"""How fast texts are prepared, beside the plain ``tokenizers`` library, and in how much memory.

``python -m tests.datamodules.bench_prepare [--megabytes 64] [--processes 1] [--path TEXT] [--kinds bpe word …]``

Speeds are MB of UTF-8 text per second of wall-clock time over all stages (hashing the source, learning the
tokenizer, encoding, writing) and, in the last column, per core for encoding alone. Memory is the largest sum over
all processes of the proportional set size, sampled every 50 ms; mapped files that can be dropped count in it.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

PREPARE = """
import sys, time
from datamodules import TextDataModule
path, kind, cache, n = sys.argv[1:]
started = time.monotonic()
data = TextDataModule(path, tokenizer=kind, cache_dir=cache, n_processes=int(n), max_vocab_size=30_000 if kind == "word" else None)
data.check_source()
print(time.monotonic() - started, data.check_source().facts["train"].n_bytes + data.check_source().facts["val"].n_bytes)
"""


def write_corpus(path: Path, megabytes: int) -> None:
    """Lines of words with the frequencies of natural text, some of them never seen before."""
    draw = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(draw.choices(letters, range(26, 0, -1), k=draw.randint(1, 10))) for _ in range(50_000)]
    weights = [1 / (rank + 3) for rank in range(len(words))]
    block = [" ".join(draw.choices(words, weights, k=draw.randint(5, 120))) for _ in range(4000)]
    with path.open("w") as file:
        number = 0
        while file.tell() < megabytes * 1_000_000:
            file.writelines(f" {line} {number + i:x}é .\n" for i, line in enumerate(block))
            number += len(block)
            draw.shuffle(block)


def memory_of_tree(pid: int) -> int:
    """Proportional set size, in bytes, of a process and all below it."""
    total, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        try:
            for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
            for task in Path(f"/proc/{one}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return total


def watched(words: list[str]) -> tuple[subprocess.CompletedProcess[str], int]:
    """A process that has ended, and the peak memory in bytes of it and all below it."""
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, memory_of_tree(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, err = process.communicate()
    done.set()
    watcher.join()
    return subprocess.CompletedProcess(words, process.returncode, out, err), peak


def measured(path: Path, kind: str, processes: int) -> tuple[float, int, int]:
    """Seconds, bytes of text and peak memory of one preparation in a process of its own."""
    with tempfile.TemporaryDirectory(dir=path.parent) as cache:
        ended, peak = watched([sys.executable, "-c", PREPARE, str(path), kind, cache, str(processes)])
        assert ended.returncode == 0, ended.stderr
        seconds, n_bytes = ended.stdout.split()
        return float(seconds), int(n_bytes), peak


def encoding_speeds(path: Path, kind: str) -> tuple[float, float]:
    """MB/s of one core: our encoding of segments, and the plain library on the lines of the same text."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import tokenizers

    from datamodules.encoding import encode_segment, segments
    from datamodules.text import read_text
    from datamodules.tokenizers import ByteTokenizer, CharTokenizer, WordTokenizer
    from datamodules.tokenizers.bpe import train_bpe
    from datamodules.tokenizers.word import choose_words

    text = "".join(piece for piece, _ in zip(read_text(path), range(4), strict=False))[:16_000_000]
    size = len(text.encode()) / 1e6
    plain = 0.0
    if kind == "bpe":
        ours = train_bpe([text[:4_000_000]], 8192)
        library = tokenizers.Tokenizer(tokenizers.models.BPE(ours._vocabulary, ours._merges))
        library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        lines = text.splitlines(keepends=True)
        started = time.process_time()
        for first in range(0, len(lines), 1000):
            for encoding in library.encode_batch(lines[first : first + 1000]):
                len(encoding.ids)
        plain = size / (time.process_time() - started)
    elif kind == "word":
        from collections import Counter

        ours = WordTokenizer(choose_words(Counter(text.split()), 30_000))
    else:
        ours = ByteTokenizer() if kind == "byte" else CharTokenizer("".join(set(text)))
    started = time.process_time()
    for segment in segments([text]):
        encode_segment(ours, segment)
    return size / (time.process_time() - started), plain


def main() -> None:
    """Prints one line per kind of tokenizer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--path", type=Path)
    parser.add_argument("--kinds", nargs="+", default=["bpe", "word", "char", "byte"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.path or Path(folder) / "corpus.txt"
        if not path.exists():
            write_corpus(path, options.megabytes)
        print(f"{path.stat().st_size / 1e6:,.0f} MB, {options.processes} process(es)")
        print(
            f"{'kind':<6}{'seconds':>9}{'MB/s':>8}{'peak MB':>9}{'encode MB/s/core':>18}{'plain library':>15}"
        )
        for kind in options.kinds:
            seconds, n_bytes, peak = measured(path, kind, options.processes)
            ours, plain = encoding_speeds(path, kind)
            print(
                f"{kind:<6}{seconds:>9.1f}{n_bytes / 1e6 / seconds:>8.1f}{peak / 1e6:>9.0f}{ours:>18.1f}"
                f"{f'{plain:.1f}' if plain else '-':>15}",
                flush=True,
            )


if __name__ == "__main__":
    main()
