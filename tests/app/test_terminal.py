"""What a person sees of ``app fit`` on a terminal of their own."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.support import tiny
from tests.support.application import environment
from tests.support.descriptors import has_something

pytestmark = pytest.mark.process
FIRST_WORDS_SECONDS = 1.0


def first_words(words: list[str], cwd: Path) -> tuple[str, float]:
    """What a command prints first on a terminal of 80 columns, and after how many seconds; the command is then ended."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "app", *words], cwd=cwd, env=environment() | {"TERM": "xterm"},
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    try:
        assert has_something(ours, 60), "nothing within a minute"
        return os.read(ours, 4096).decode(), time.monotonic() - began
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(ours)


def test_the_first_words_of_a_run(text: Path, tmp_path: Path) -> None:
    config = tiny.write(tmp_path / "tiny.yaml", tiny.gpt(text))
    seconds = []
    for _ in range(3):  # a busy machine may well slow one of them down
        said, after = first_words(["fit", "--config", str(config)], tmp_path)
        assert "loading PyTorch" in said, said
        seconds.append(after)
        if after < FIRST_WORDS_SECONDS:
            return
    raise AssertionError(f"{seconds} s")
