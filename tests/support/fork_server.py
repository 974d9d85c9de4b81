"""A process that has imported the application once and forks for every command that a test runs.

It only imports: no tensor operation and no thread before a fork, so that a child is what a fresh interpreter
would have become, seconds earlier. Run as ``python -m tests.support.fork_server SOCKET``.
"""

import atexit
import contextlib
import functools
import importlib.util
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

PRELOADED = (
    "app.cli",
    "app.commands.fit",
    "app.commands.generate",
    "app.commands.validate",
    "app.loading",
    "app.training.command_line",
    "app.training.evaluation",
    "app.training.session",
    "callbacks",
    "datamodules.char",
    "torch.utils.tensorboard",
    "torch._dynamo",
    "multiprocessing.popen_fork",
)


#: clients of the processes that have not ended
waiting: dict[int, socket.socket] = {}


def serve(path: str) -> None:
    """Listens until the client that started it hangs up."""
    for name in PRELOADED:
        __import__(name)
    try:
        _listen(path)
    finally:
        for pid in waiting:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def _listen(path: str) -> None:
    listener = socket.socket(socket.AF_UNIX)
    # Under its name only once it listens: whoever finds it may connect.
    staging = f"{path}.{os.getpid()}"
    listener.bind(staging)
    listener.listen()
    os.rename(staging, path)
    owner: socket.socket | None = None
    while True:
        readable, _, _ = select.select([listener, *([owner] if owner else [])], [], [], 0.01)
        if owner is not None and owner in readable:
            return
        if listener in readable:
            client, _ = listener.accept()
            with client.makefile("r") as lines:
                request = json.loads(lines.readline())
            if request == "owner":
                owner = client
            else:
                pid = os.fork()
                if pid == 0:
                    listener.close()
                    _become(request)
                client.sendall(f"{pid}\n".encode())
                waiting[pid] = client
        for pid in list(waiting):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                client = waiting.pop(pid)
                with contextlib.suppress(OSError):  # the test may have ended without waiting
                    client.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
                client.close()


def _become(request: dict[str, Any]) -> None:
    """The child: the application, with this command line, folder, environment and output files."""
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    # Read at its import, which was the server's.
    choice: Any = sys.modules["app.ops.choice"]
    choice._forced = os.environ.get(choice.VARIABLE) or None
    for number, name in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        os.dup2(os.open(name, flags, 0o644), number)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
    # What `python -m app` says of itself: the ranks that a launcher starts run the same.
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("app.__main__")
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    if not request["whole_ending"]:
        _shorten_ending()
    if not request["warm_rank"]:
        _run(request["arguments"], request["prelude"])
    from tests.support import warm_rank

    warm_rank.prepare(functools.partial(_run, prelude=request["prelude"]))
    _run(request["arguments"], request["prelude"])


def _run(arguments: Sequence[str], prelude: str) -> NoReturn:
    """The application from its command line to the end of the process."""
    import app.cli

    code = 1
    sys.argv = ["app", *arguments]
    try:
        if prelude:
            exec(compile(prelude, "prelude", "exec"), {})
        app.cli.entry()
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _shorten_ending() -> None:
    """The samples and the picture that a finished run makes take longer than all the steps of a tiny one."""
    summary: Any = sys.modules["app.training.run_callbacks.summary"].RunSummary
    summary.__init__ = functools.partialmethod(summary.__init__, n_samples=1, n_tokens=8)
    evaluation: Any = sys.modules["app.training.evaluation"]
    evaluation.count_baseline = functools.partial(evaluation.count_baseline, n_samples=1, n_tokens=8)
    fit: Any = sys.modules["app.commands.fit"]
    fit._draw = lambda session: None


if __name__ == "__main__":
    serve(sys.argv[1])
    os._exit(0)  # the libraries' own farewells take seconds
