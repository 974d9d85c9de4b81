"""Which of several processes this one is: what its launcher says, told from what other launches have left behind.

A rank that is not the first says little and records nothing. Numbers in the environment do not make one: the process
must have been started by our own launcher, or by torchrun whose agent answers. After :func:`settle` the environment
holds the numbers of such a launch or none, and whoever reads them there, the framework while it is imported above all,
reads the truth.
"""

import os
import socket
import stat
import sys

from app.run.errors import ConfigurationError

#: for the ranks that our own launcher starts: the socket on which it speaks to them, as descriptor:inode
CHANNEL = "ARCHLAB_CHANNEL"
#: and the launcher's process id
LAUNCHER = "ARCHLAB_LAUNCHER"
#: where the ranks of one machine meet: a file of the launching process
MEETING = "ARCHLAB_MEETING"
#: and where they note their progress
NOTES = "ARCHLAB_NOTES"
#: that torchrun has started this process
TORCHRUN = "TORCHELASTIC_RUN_ID"
#: numbers that launchers give, and that the framework or PyTorch read wherever they find them
NUMBERS = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("NODE_RANK", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE"),
    *("SLURM_PROCID", "JSM_NAMESPACE_RANK"),
    *(TORCHRUN, "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_USE_AGENT_STORE"),
    *(CHANNEL, LAUNCHER, MEETING, NOTES),
)
#: where ranks meet; alone a choice of the user's
MEETING_PLACE = ("MASTER_ADDR", "MASTER_PORT")
_ANSWER_SECONDS = 5.0  # the agent is there before the processes that it starts


def number() -> int:
    """This process's rank among all of its launch; 0 where it is alone."""
    text = os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or "0"
    return int(text) if _is_whole(text) else 0


def is_torchrun() -> bool:
    """Whether torchrun has started this process."""
    return TORCHRUN in os.environ


def settle(may_be_several: bool) -> None:
    """Leaves in the environment only what the launcher of this process has put there, and says what was left over.

    Args:
        may_be_several: whether the command can be run by several processes that know of each other.

    Raises:
        ConfigurationError: numbers of torchrun's that cannot be, torchrun's agent does not answer, or several tasks of
            a SLURM job step, which do not know of each other.
    """
    kept: set[str] = set()
    if may_be_several:
        if is_torchrun() and _is_rank_of_torchrun():
            kept = {*NUMBERS, *MEETING_PLACE} - {CHANNEL, LAUNCHER, MEETING, NOTES}
        elif _is_rank_of_ours():
            kept = {LAUNCHER, CHANNEL, MEETING, NOTES, "LOCAL_RANK", *MEETING_PLACE}
        else:
            _refuse_several_tasks()
    if os.environ.get("SLURM_PROCID") == "0":
        kept.add("SLURM_PROCID")  # so it is in every job of one task
    left_over = [name for name in NUMBERS if name in os.environ and name not in kept]
    if not left_over:
        return
    left_over += [name for name in MEETING_PLACE if name in os.environ and name not in kept]
    for name in left_over:
        del os.environ[name]
    print(
        f"note: {', '.join(left_over)}: left over from another launch and ignored; "
        f"unset {'it' if len(left_over) == 1 else 'them'}",
        file=sys.stderr,
        flush=True,
    )


def _is_rank_of_torchrun() -> bool:
    """Whether torchrun's variables are complete and its agent answers."""
    values = {name: os.environ[name] for name in (*NUMBERS, *MEETING_PLACE) if name in os.environ}
    problems = [
        f"{name}: {values[name]!r} is no whole number"
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_PORT")
        if name in values and not _is_whole(values[name])
    ]
    for rank, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        is_known = _is_whole(values.get(rank, "")) and _is_whole(values.get(size, ""))
        if is_known and int(values[rank]) >= int(values[size]):
            problems.append(f"{rank}: {values[rank]}, but {size} is {values[size]}, and ranks count from 0")
    remedy = f"torchrun sets it ({TORCHRUN} is there too); start torchrun again, or unset what is left over"
    if problems:
        raise ConfigurationError(f"{problem}; {remedy}" for problem in problems)
    needed = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_USE_AGENT_STORE", *MEETING_PLACE)
    if not all(values.get(name) for name in needed):
        return False
    if values["TORCHELASTIC_USE_AGENT_STORE"] != "True":
        return True  # the ranks meet at a place that rank zero opens later
    place = (values["MASTER_ADDR"], int(values["MASTER_PORT"]))
    try:
        socket.create_connection(place, _ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        if values["WORLD_SIZE"] == "1":
            return False  # nobody is waited for
        raise ConfigurationError(
            f"{TORCHRUN}: torchrun's agent does not answer at {place[0]}:{place[1]} ({error}); start torchrun again, "
            f"or unset {TORCHRUN} and RANK where they are left over"
        ) from error
    return True


def held_channel() -> int | None:
    """Descriptor of the socket that our launcher has left open for this rank; None in every other process.

    A variable can be left over, and a number of a process can be taken again: an open socket cannot.
    """
    number, _, inode = os.environ.get(CHANNEL, "").partition(":")
    if not (_is_whole(number) and _is_whole(inode)):
        return None
    try:
        status = os.fstat(int(number))
    except (OSError, OverflowError):
        return None
    return int(number) if stat.S_ISSOCK(status.st_mode) and status.st_ino == int(inode) else None


def _is_rank_of_ours() -> bool:
    """Whether our launcher, alive or not, has started this process."""
    launcher, rank = os.environ.get(LAUNCHER, ""), os.environ.get("LOCAL_RANK", "")
    return _is_whole(launcher) and _is_whole(rank) and int(rank) > 0 and held_channel() is not None


def _refuse_several_tasks() -> None:
    n_tasks = os.environ.get("SLURM_NTASKS", "")
    is_interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if _is_whole(n_tasks) and int(n_tasks) > 1 and not is_interactive:
        raise ConfigurationError(
            f"SLURM_NTASKS is {n_tasks}: start one task per node, and the processes in it with torchrun or "
            "--trainer.devices"
        )


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdecimal()
