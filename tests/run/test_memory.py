"""The memory of a process is its own."""

import subprocess
import sys

PRINTS = "from app.run.memory import peak_bytes; print(peak_bytes())"
LARGE = f"""
import subprocess, sys
held = b"x" * (200 << 20)
subprocess.run([sys.executable, "-c", {PRINTS!r}], check=True)
{PRINTS}
"""


def test_what_the_starting_process_took_does_not_count() -> None:
    printed = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True).stdout
    small, large = map(int, printed.split())
    assert 1 << 20 < small < 100 << 20
    assert large > 200 << 20
