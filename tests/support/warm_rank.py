"""Ranks that a forked launcher starts without paying for the imports again."""

import json
import os
import signal
from collections.abc import Callable, Sequence

from lightning.pytorch.strategies.launchers import subprocess_script


def prepare(become: Callable[[Sequence[str]], None]) -> None:
    """Forks a rank in advance, a child of this process, and lets the framework's launcher start that one.

    To be called while the process is as it was forked. The rank waits until the launcher would run a command,
    and then becomes that command, with the environment that it is given.

    Args:
        become: runs the application with these words and ends the process.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write)
        with os.fdopen(read) as pipe:
            text = pipe.read()
        if not text:  # the launcher has ended without a command
            os._exit(0)
        request = json.loads(text)
        os.environ.clear()
        os.environ.update(request["environment"])
        become(request["arguments"])
    os.close(read)

    def start(command: Sequence[str], env: dict[str, str], cwd: str | None) -> WarmRank:
        _, module, name, *arguments = command
        assert (module, name, cwd) == ("-m", "app.__main__", None), command
        with os.fdopen(write, "w") as pipe:
            json.dump({"environment": env, "arguments": arguments}, pipe)
        return WarmRank(pid)

    class Module:
        Popen = staticmethod(start)

    subprocess_script.subprocess = Module


class WarmRank:
    """What the launcher uses of :class:`subprocess.Popen`."""

    def __init__(self, pid: int):
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
