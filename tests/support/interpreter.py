"""Fresh interpreters that run a few lines, for what signals do to a process."""

import subprocess
import sys

from tests.support import stuck
from tests.support.application import REPOSITORY


def start(code: str, first: str = "", **kwargs: bool) -> "subprocess.Popen[str]":
    """A fresh interpreter with ``app.run.signals`` that has printed ``ready``.

    Args:
        code: what it runs.
        first: what it runs before the import.
        kwargs: of the process.
    """
    # Under nohup this process, and what it starts, would ignore SIGHUP, as it should: not in these tests.
    heard = "signal.signal(signal.SIGHUP, signal.SIG_DFL)"
    text = (
        f"import os, signal, subprocess, sys, time\n{heard}\n{first}\nfrom app.run.signals import *\n{code}"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", text],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


#: the main thread waits in C
STUCK = stuck.source("ready")
WAIT = "print('ready', flush=True)\nfor _ in range(300): time.sleep(0.02)"
