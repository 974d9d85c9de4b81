"""Ranks that a forked launcher starts without paying for the imports again."""

import json
import os
import signal
import socket
from collections.abc import Callable, Sequence

from app.run import rank_processes


def prepare(become: Callable[[Sequence[str]], None]) -> None:
    """Forks a rank in advance, a child of this process, and lets the launcher start that one.

    To be called while the process is as it was forked. The rank waits until the launcher would run a command,
    and then becomes that command, with the environment and the descriptor that it is given.

    Args:
        become: runs the application with these words and ends the process.
    """
    theirs, ours = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        with theirs:
            text, files, _, _ = socket.recv_fds(theirs, 1 << 20, 1)
        if not text:  # the launcher has ended without a command
            os._exit(0)
        request = json.loads(text)
        os.dup2(files[0], request["descriptor"])
        os.environ.clear()
        os.environ.update(request["environment"])
        become(request["arguments"])
    theirs.close()

    def start(command: Sequence[str], env: dict[str, str], pass_fds: Sequence[int]) -> WarmRank:
        _, module, name, *arguments = command
        assert (module, name) == ("-m", "app.__main__"), command
        request = {"environment": env, "arguments": arguments, "descriptor": pass_fds[0]}
        with ours:
            socket.send_fds(ours, [json.dumps(request).encode()], pass_fds)
        return WarmRank(pid)

    class Module:
        Popen = staticmethod(start)

    rank_processes.subprocess = Module  # type: ignore[assignment]


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
