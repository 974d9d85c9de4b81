"""Runs of ``app fit`` without the wait for their imports: one process imports the framework and forks each of them.

``python -m app.warm`` reads orders from its standard input, one JSON value a line:

- ``{"start": number, "words": [...], "log": file, "environment": {...}}`` forks a process of ``app`` with these words,
  whose output is appended to the file; the environment is set before a device is touched. There is no answer.
- ``{"ask": number}`` is answered by ``[number, {started number: [process id, exit code or null]}]`` on standard output.
  A code is negative where a signal ended the process.

It leaves where its input ends; what it has started goes on. A forked process is what a fresh one would be: before the
fork modules are imported and nothing is computed, no device is touched and no thread started. It is the first of a
session of its own, and ends as an interpreter ends. Where the imports have done more than that, nothing is forked: the
only answer is the reason, a string.
"""

import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from app.cli import entry
from app.run.without_packages import quick_framework


def import_framework() -> None:
    """Everything that a run imports sooner or later, in its order: first the framework, then what draws."""
    os.environ["MPLBACKEND"] = "agg"
    with quick_framework(()):
        importlib.import_module("app.training.command_line")
        importlib.import_module("app.training.session")
    for name in ("app.commands.fit", "app.models", "callbacks", "datamodules", "app.analysis.curves"):
        importlib.import_module(name)
    importlib.import_module("matplotlib.figure")


def reason_against_forking(n_threads: int) -> str:
    """What a forked process would miss or share; empty where it would be as good as a fresh one.

    Args:
        n_threads: of this process before its imports, counted after those of the linear algebra, which starts its own
            and starts them again in a forked process.
    """
    files = (os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
    if any(os.readlink(file).startswith("/dev/nvidia") for file in files if os.path.islink(file)):
        return "importing the framework has opened a GPU"
    more = len(os.listdir("/proc/self/task")) - n_threads
    return f"importing the framework has started {more} threads" if more > 0 else ""


def serve(warm_up: Callable[[], None] = import_framework) -> None:
    """Obeys orders until there are no more. In a forked process it returns at once, ready for :func:`app.cli.entry`.

    Args:
        warm_up: what is done once before the first fork.
    """
    orders, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever an import prints is no answer
    importlib.import_module("numpy")
    n_threads = len(os.listdir("/proc/self/task"))
    warm_up()
    if reason := reason_against_forking(n_threads):
        print(json.dumps(reason, allow_nan=False), file=answers, flush=True)
        os._exit(0)
    pids: dict[int, int] = {}
    codes: dict[int, int] = {}
    for line in orders:
        order: dict[str, Any] = json.loads(line)
        if "start" in order:
            pid = os.fork()
            if pid == 0:
                answers.close()
                _become(order["words"], order["log"], order["environment"])
                return
            pids[order["start"]] = pid
            continue
        for number, pid in pids.items():
            if number not in codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    codes[number] = os.waitstatus_to_exitcode(status)
        found = {number: [pid, codes.get(number)] for number, pid in pids.items()}
        print(json.dumps([order["ask"], found], allow_nan=False), file=answers, flush=True)
    # Not a word more: whoever asked is gone, and so may be whoever reads what an interpreter says at its end.
    os._exit(0)


def _become(words: Sequence[str], log: str, environment: dict[str, str]) -> None:
    """Makes this process look like one that was started for itself."""
    os.setsid()
    for number, (file, mode) in enumerate(
        [(os.devnull, os.O_RDONLY), (log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)]
    ):
        opened = os.open(file, mode, 0o666)
        os.dup2(opened, number)
        os.close(opened)
    os.dup2(1, 2)
    os.environ.update(environment)
    sys.argv[:] = ["app", *words]
    # What starts further processes, such as ranks, looks there for how to do so.
    sys.modules["__main__"] = importlib.import_module("app.__main__")


if __name__ == "__main__":
    serve()
    entry()
