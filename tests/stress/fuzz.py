"""A coverage-guided fuzzer for one reader: Atheris (libFuzzer) on this program's own Python and PyYAML's.

``python -m tests.stress.fuzz yaml 60`` looks for a minute for an input that its reader must not answer as it does;
:func:`campaign` does so in a process of its own and counts.
"""

import atexit
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
MOST_SECONDS = 10  # for one input
#: what one input may take beside twice its size, as everywhere; the process itself may grow by as much again
FREE_BYTES = 64 << 20
MAX_INPUT_BYTES = 8192
#: of the audit events, those that a reader has no business with
FORBIDDEN = (
    "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "subprocess.Popen", "socket.connect",
    "socket.bind", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.link", "os.symlink", "os.truncate",
    "shutil.rmtree", "ctypes.dlopen",
)  # fmt: skip


@dataclass(frozen=True)
class Campaign:
    """What a fuzzer has found.

    Attributes:
        executions: inputs that were read.
        covered: edges of the instrumented code that were reached.
        problem: the last line of what went wrong; empty where nothing did.
        finding: the input that did it.
        output: all that the fuzzer has said.
    """

    executions: int
    covered: int
    problem: str
    finding: bytes
    output: str


def campaign(reader: str, seconds: int, folder: Path, prelude: str = "") -> Campaign:
    """Fuzzes a reader for so long, or until it does what it must not.

    Args:
        reader: one of :data:`tests.stress.readers.READERS`.
        seconds: of it; the start takes some more.
        folder: for the inputs that reach new code.
        prelude: Python source run in the process before, to show that a fault is found.
    """
    ended = subprocess.run(
        [sys.executable, "-m", "tests.stress.fuzz", reader, str(seconds), str(folder), prelude],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds + 900,  # on a machine that has much else to do
        encoding="utf-8",
        errors="replace",
    )
    found = [path for path in folder.glob("finding-*") if path.is_file()]
    executions = re.findall(r"stat::number_of_executed_units:\s*(\d+)|^#(\d+)\t", ended.stdout, re.MULTILINE)
    covered = re.findall(r"cov: (\d+)", ended.stdout)
    problems = re.findall(
        r"^(?:==\d+== ?ERROR: |SUMMARY: )?(.*(?:Error|Exception|libFuzzer).*)$", ended.stdout, re.MULTILINE
    )
    failed = ended.returncode != 0
    return Campaign(
        max((int(a or b) for a, b in executions), default=0),
        int(covered[-1]) if covered else 0,
        (problems[-1] if problems else f"exit {ended.returncode}")[:300] if failed else "",
        found[0].read_bytes() if found else b"",
        ended.stdout,
    )


def main(name: str, seconds: int, kept: Path, prelude: str) -> None:
    """Runs in the process that fuzzes; does not return.

    Args:
        name: of the reader.
        seconds: to go on for.
        kept: folder for inputs that reach new code, and for the one that fails.
        prelude: of :func:`campaign`.
    """
    # Before anything is instrumented, so that only what reads is.
    import atheris
    import pyarrow.parquet  # noqa: F401
    import torch  # noqa: F401

    for module in [module for module in sys.modules if module.partition(".")[0] == "yaml"]:
        del sys.modules[module]
    with atheris.instrument_imports(include=["app", "datamodules", "yaml"]):
        from tests.stress.readers import CORPUS, READERS
    exec(prelude, {})
    reader = READERS[name]
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    place = Path(tempfile.mkdtemp(prefix="fuzz-", dir=memory))
    for number, seed in enumerate(reader.seeds(place)):
        (kept / f"seed-{number}").write_bytes(seed)
        reader.takes(seed, place)  # what is imported on the first use is no part of what an input does
    watch = _Watch(place)

    def read(content: bytes) -> None:
        # Left at once: the way out through libFuzzer and the interpreter may outlast the time of an input.
        if problem := _problem(reader, content, place, watch):
            (kept / "finding-input").write_bytes(content)
            print(problem, file=sys.stderr, flush=True)
            os._exit(1)

    corpus = CORPUS / name
    limit = _most_bytes() // (1 << 20) + 1024
    words = [
        sys.argv[0], str(kept), *([str(corpus)] if corpus.is_dir() else []),
        f"-max_total_time={seconds}", f"-timeout={MOST_SECONDS}", f"-rss_limit_mb={limit}",
        f"-max_len={MAX_INPUT_BYTES}", f"-artifact_prefix={kept}/finding-", "-print_final_stats=1",
    ]  # fmt: skip
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    atheris.Setup(words, read)
    atheris.Fuzz()


def _problem(reader: Any, content: bytes, place: Path, watch: "_Watch") -> str:
    """What a reader did with an input that it must not do, its name last; empty where it did nothing of the kind."""
    before = _most_bytes()
    watch.is_on = True
    try:
        reader.takes(content, place)
    except BaseException:  # a panic of a library is no Exception
        return traceback.format_exc()
    finally:
        watch.is_on = False
    taken = _most_bytes() - before
    if taken > FREE_BYTES + 2 * len(content):
        return f"MemoryError: {taken:,} bytes for {len(content):,}"
    return f"PermissionError: did what no reader does: {watch.seen}" if watch.seen else ""


class _Watch:
    """Notes what a reader does beside reading, by Python's audit events; a hook can never be taken off again."""

    def __init__(self, place: Path):
        self.is_on = False
        self.seen = ""
        self._place = str(place)
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on or (event != "open" and event not in FORBIDDEN):
            return
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if not writes:
                return
            arguments = (path,)
        if not any(str(argument).startswith(self._place) for argument in arguments[:1]):
            self.seen = f"{event} {arguments}"[:200]


def _most_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else "")
