"""The ranks that a launching process starts on its machine: started early, spoken to, watched and ended.

Nothing heavy is imported here, so that the ranks import what is heavy side by side. Between the launching process
(rank zero) and each other rank there is a pair of sockets, on which rank zero says what it has decided, in this order:

- ``plan``: which run this is (``app fit`` alone);
- ``text``: where the tokens are that it has read, as an open file;
- ``meet``: where the ranks meet; from then on a rank speaks for itself.

Until ``meet`` a rank's own errors are rank zero's too. Such a rank waits: rank zero says why there is no run, and ends
it.
"""

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import IO, Any

from app.run.errors import ExitCode, RankLostError
from app.run.ranks import CHANNEL, LAUNCHER, held_channel
from app.run.signals import requested, starting_processes
from app.run.watch import end_descendants

_LENGTH = struct.Struct("!I")
_MAX_FILES = 8


class Words:
    """What rank zero says, worked out when the first rank is there to hear it.

    Args:
        subject: see this module.
        make: see :meth:`OtherRanks.say`.
    """

    def __init__(self, subject: str, make: Callable[[], tuple[IO[bytes] | None, Any] | None]):
        self.subject = subject
        self._make = make

    @cached_property
    def made(self) -> tuple[IO[bytes] | None, Any]:
        """File and values."""
        return self._make() or (None, None)


class OtherRanks:
    """What rank zero does with the ranks that it has started; none of it does anything where there are none.

    Attributes:
        processes: local rank 1 first.
        on_lost: told which rank was lost and how, before this process ends.
    """

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen] = []
        self.on_lost: Callable[[str], object] = lambda reason: None
        self._channels: list[socket.socket] = []
        self._words: list[Words] = []
        self._watch: RankWatch | None = None

    def start(self, n: int) -> None:
        """Starts ``n`` processes with the command line of this one, watches them, and tells them all that was said."""
        with starting_processes():
            for rank in range(1, n + 1):
                ours, theirs = socket.socketpair()
                with theirs:
                    handed = {
                        LAUNCHER: str(os.getpid()),
                        CHANNEL: f"{theirs.fileno()}:{os.fstat(theirs.fileno()).st_ino}",
                        "LOCAL_RANK": str(rank),
                    }
                    # Kept by us first: a process that is not in the list would outlive us.
                    self._channels.append(ours)
                    self.processes.append(
                        subprocess.Popen(_command(), env=os.environ | handed, pass_fds=[theirs.fileno()])
                    )
        if self.processes:
            self._watch = RankWatch(self)
            self._watch.start()
            for words in self._words:
                self._send(words)

    def say(self, subject: str, make: Callable[[], tuple[IO[bytes] | None, Any] | None]) -> None:
        """Tells all of them something, those too that are started later.

        Args:
            subject: see this module.
            make: gives a file for them and plain values, or None for neither; asked once there is a rank to tell.
        """
        words = Words(subject, make)
        self._words.append(words)
        if self.processes:
            self._send(words)

    def _send(self, words: "Words") -> None:
        file, values = words.made
        body = json.dumps([words.subject, values], allow_nan=False).encode()
        for channel in self._channels:
            with contextlib.suppress(OSError):  # a rank that is gone is noticed by the watch
                socket.send_fds(channel, [_LENGTH.pack(len(body))], [] if file is None else [file.fileno()])
                channel.sendall(body)

    def cancel_watch(self) -> None:
        """From here on a rank may end as it likes."""
        if self._watch is not None:
            self._watch.cancel()

    def end(self, signals: Sequence[int], patience_seconds: float = 1.0) -> None:
        """Ends those that still run by these signals, one after the other."""
        self.cancel_watch()
        for signum in signals:
            for process in self.processes:
                if process.poll() is None:
                    process.send_signal(signum)
            self.wait(patience_seconds)
        for channel in self._channels:
            channel.close()
        self._channels.clear()
        self.processes = []

    def wait(self, patience_seconds: float) -> None:
        """Waits until all have ended, for some seconds at most."""
        deadline = time.monotonic() + patience_seconds
        while time.monotonic() < deadline and any(process.poll() is None for process in self.processes):
            time.sleep(0.02)

    @property
    def lost(self) -> tuple[int, int] | None:
        """Local rank and exit code of the first one that ended badly."""
        codes = (process.poll() for process in self.processes)
        return next(((rank, code) for rank, code in enumerate(codes, start=1) if code), None)


#: of this process
OTHERS = OtherRanks()


def _command() -> list[str]:
    """This process's own command line."""
    import __main__

    spec = __main__.__spec__
    named = [os.path.abspath(sys.argv[0])] if spec is None else ["-m", spec.name]
    return [sys.executable, *named, *sys.argv[1:]]


def lost_message(rank: int, code: int) -> str:
    """What a person is told about a lost rank."""
    cause = f"signal {-code}" if code < 0 else f"exit code {code}"
    return (
        f"rank {rank} was lost ({cause}); its message, if it left one, stands above. "
        "Remedy: start the same command again with --resume auto."
    )


class RankWatch(threading.Thread):
    """Ends this process when another rank ended badly; a collective would wait for it for ever.

    Args:
        ranks: the other ones.
    """

    def __init__(self, ranks: OtherRanks):
        super().__init__(daemon=True, name="rank-watch")
        self.ranks = ranks
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        self._cancelled.set()

    def run(self) -> None:
        while not self._cancelled.wait(0.5):
            lost = self.ranks.lost
            # An exception of this rank may be what brought the other down: let it speak first.
            if lost is None or self._cancelled.wait(2.0):
                continue
            if requested() is not None:  # we are leaving, in whatever way
                continue
            try:
                for process in self.ranks.processes:
                    if process.poll() is None:
                        process.kill()
                self.ranks.on_lost("rank {} was lost (code {})".format(*lost))
                print(f"error: {lost_message(*lost)}", file=sys.stderr, flush=True)
                end_descendants()  # this process may have been preparing the text with several others
            finally:
                os._exit(ExitCode.RANK_LOST)


class RankZero:
    """What a rank hears from the process that has started it.

    Args:
        channel: the rank's end of the pair of sockets.

    Attributes:
        has_met: whether ``meet`` was heard.
    """

    def __init__(self, channel: socket.socket):
        self.has_met = False
        self._channel = channel

    def receive(self, subject: str) -> tuple[Any, list[int]]:
        """Waits for what rank zero says of this; what it has said before is passed over. A signal ends the waiting.

        Returns:
            The values, and the descriptors that came with them.

        Raises:
            RankLostError: rank zero is gone.
        """
        while True:
            try:
                head, files, _, _ = socket.recv_fds(self._channel, _LENGTH.size, _MAX_FILES)
                head += self._exactly(_LENGTH.size - len(head))
                said, values = json.loads(self._exactly(_LENGTH.unpack(head)[0]))
            except OSError as error:
                raise RankLostError("the launching process is gone; this rank ends too") from error
            self.has_met = self.has_met or said == "meet"
            if said == subject:
                return values, files
            for file in files:
                os.close(file)

    def _exactly(self, n: int) -> bytes:
        body = b""
        while len(body) < n:
            if not (part := self._channel.recv(n - len(body))):
                raise ConnectionError
            body += part
        return body


_rank_zero: RankZero | None = None


def rank_zero() -> RankZero | None:
    """The process that has started this one as another rank; None where none of ours has."""
    global _rank_zero
    if _rank_zero is None and (channel := held_channel()) is not None:
        os.set_inheritable(channel, False)
        _rank_zero = RankZero(socket.socket(fileno=channel))
    return _rank_zero


def leave_words_to_rank_zero() -> None:
    """Waits, in a rank that has failed before the ranks have met, to be ended by rank zero, which has failed as well.

    It returns where rank zero has not: the mistake is this rank's own.
    """
    zero = rank_zero()
    if zero is not None and not zero.has_met:
        try:
            zero.receive("meet")
        except RankLostError:
            time.sleep(2.0)  # the watch of the launching process comes first


class ParentWatch(threading.Thread):
    """Ends this rank when the process that started it is gone; nobody else would.

    Args:
        parent: process id of that process.
    """

    def __init__(self, parent: int):
        super().__init__(daemon=True, name="parent-watch")
        self.parent = parent

    @classmethod
    def of_this_rank(cls) -> "ParentWatch":
        """Watches our launcher, also where it has ended before this is called; else whoever is the parent."""
        return cls(int(os.environ.get(LAUNCHER) or os.getppid()))

    def run(self) -> None:
        while os.getppid() == self.parent:
            time.sleep(0.5)
        print("error: the launching process is gone; this rank ends too", file=sys.stderr, flush=True)
        os._exit(ExitCode.RANK_LOST)
