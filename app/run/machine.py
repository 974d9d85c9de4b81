"""What the machine offers to a run: processors, disks, shared memory, locks, clocks, the environment.

Each check looks, says what it found and what to do about it, and leaves nothing behind. Only the standard
library is needed.
"""

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from app.run import ranks
from app.run.atomic import free_bytes, write_text
from app.run.errors import AppError, ConfigurationError
from app.run.launching import REQUIRED_BYTES
from app.run.lock import RunLock
from app.run.manifest import ENVIRONMENT

Level = Literal["ok", "warn", "fail"]

ROOMY_BYTES = 2 << 30  # below, a few checkpoints of a middling network fill the disk
SHARED_BYTES = 256 << 20  # a few prefetched batches of every loader process
SKEW_SECONDS = 5.0  # a lock is taken for abandoned after two minutes without a sign of life

#: variables that change what the application does, and how; only these are ever printed
EFFECTS = {
    "OMP_NUM_THREADS": "processor threads of one process",
    "MKL_NUM_THREADS": "threads of the matrix library",
    "CUDA_VISIBLE_DEVICES": "which GPUs are seen",
    "CUDA_LAUNCH_BLOCKING": "every GPU kernel is waited for",
    "PYTORCH_CUDA_ALLOC_CONF": "how GPU memory is handed out",
    "TRITON_INTERPRET": "Triton kernels are interpreted, for debugging",
    "APP_OP_FORM": "the form that operators compute by, found right or not",
    "NCCL_DEBUG": "messages of communication between GPUs",
    "RANK": "this process's number; set by torchrun",
    "LOCAL_RANK": "this process's number on its machine; set by torchrun",
    "WORLD_SIZE": "number of processes; set by torchrun",
    "LOCAL_WORLD_SIZE": "number of processes on this machine; set by torchrun",
    "MASTER_ADDR": "where processes meet; set by torchrun",
    "MASTER_PORT": "where processes meet; set by torchrun",
    "SLURM_JOB_ID": "batch job",
    "SLURM_NTASKS": "tasks of the batch job",
    "APP_DEBUG": "1 shows the traceback of an error",
    "HF_HOME": "where downloaded data sets are kept",
    "HF_HUB_OFFLINE": "1 forbids downloads",
    "HF_DATASETS_OFFLINE": "1 forbids downloads of data sets",
    "TOKENIZERS_PARALLELISM": "threads of tokenizers",
}


class Check(NamedTuple):
    """One line of a report.

    Attributes:
        name: what was looked at.
        level: ``ok``, ``warn`` (works, but not as it should) or ``fail`` (a run would not work).
        found: what is there.
        remedy: what to do about it; empty where nothing need be done.
    """

    name: str
    level: Level
    found: str
    remedy: str = ""


def machine_checks(runs: Path, data: Path) -> Iterator[Check]:
    """All checks of this module.

    Args:
        runs: folder of the runs; it need not exist.
        data: folder of the data; likewise.
    """
    yield processors()
    yield storage("runs folder", runs)
    yield storage("data folder", data)
    yield shared_memory()
    yield locking(runs)
    yield clock(runs)
    yield text_output()
    yield from environment()


def processors(cgroup: Path = Path("/sys/fs/cgroup/cpu.max")) -> Check:
    """Cores that this process may use, the share of them that a container grants, and who else is busy."""
    n_cores = available_cores()
    granted = float(n_cores)
    with contextlib.suppress(OSError, ValueError):
        quota, period = cgroup.read_text().split()
        granted = min(granted, float(quota) / float(period))
    load = os.getloadavg()[0]
    found = f"{n_cores} cores for this process, load {load:.1f}"
    if granted < n_cores:
        remedy = f"set OMP_NUM_THREADS={max(1, int(granted))}: more threads wait for each other"
        is_told = os.environ.get("OMP_NUM_THREADS", "").isdigit()
        level: Level = "ok" if is_told and int(os.environ["OMP_NUM_THREADS"]) <= max(1, granted) else "warn"
        found += f", {granted:g} granted by the container"
        return Check("processors", level, found, "" if level == "ok" else remedy)
    if load > n_cores:
        return Check(
            "processors", "warn", found, "other work keeps the cores busy; OMP_NUM_THREADS=1 may be faster"
        )
    return Check("processors", "ok", found)


def available_cores() -> int:
    """Cores that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def storage(name: str, folder: Path) -> Check:
    """Whether a folder, or the nearest one that is there, can be written and has room."""
    place = existing(folder)
    where = f"{folder}" if place == folder else f"{folder} (not made yet, in {place.absolute()})"
    try:
        if not place.is_dir():
            raise NotADirectoryError(f"{place} is a file")
        with _scratch(place) as scratch:
            write_text(scratch / "probe", "written")
    except (OSError, AppError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Check(
            name, "fail", f"{where}: cannot be written ({reason})", "make it writable, or use another folder"
        )
    free = free_bytes(place)
    if free is None:
        return Check(name, "ok", f"{where}: can be written, free space unknown")
    found = f"{where}: {_size(free)} free"
    if free < REQUIRED_BYTES:
        return Check(
            name, "fail", found, f"free some space: a run needs {_size(REQUIRED_BYTES)} to begin with"
        )
    if free < ROOMY_BYTES:
        return Check(name, "warn", found, "free some space, or use a folder on another disk")
    return Check(name, "ok", found)


def shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    """CapacityBuffer for the batches that loader processes hand over."""
    if not sys.platform.startswith("linux"):
        return Check("shared memory", "ok", f"not limited by a folder on {sys.platform}")
    remedy = (
        "start the container with --shm-size=1g or --ipc=host, or train with --data.init_args.num_workers 0"
    )
    try:
        free = shutil.disk_usage(folder).free
        is_writable = os.access(folder, os.W_OK)
    except OSError as error:
        return Check("shared memory", "warn", f"{folder}: {error.strerror}", remedy)
    found = f"{folder}: {_size(free)} free"
    if not is_writable:
        return Check("shared memory", "warn", f"{found}, cannot be written", remedy)
    return Check(
        "shared memory",
        "ok" if free >= SHARED_BYTES else "warn",
        found,
        "" if free >= SHARED_BYTES else remedy,
    )


def locking(runs: Path) -> Check:
    """Whether a second holder of a run's lock is refused where the runs are."""
    try:
        with _scratch(existing(runs)) as scratch, RunLock(scratch):
            try:
                with RunLock(scratch):
                    pass
            except ConfigurationError:
                return Check("locking", "ok", "a second process is refused a run that is in use")
            return Check(
                "locking", "fail", "two processes can hold one run", "keep runs on another file system"
            )
    except (OSError, AppError) as error:
        return Check("locking", "fail", f"no lock can be taken ({error})", "keep runs on another file system")


def clock(runs: Path, now: Callable[[], float] = time.time) -> Check:
    """Whether this machine's clock agrees with the file system's, which abandoned locks are told by."""
    try:
        with _scratch(existing(runs)) as scratch:
            before = now()
            (scratch / "probe").write_text("")
            skew = (scratch / "probe").stat().st_mtime - before
    except OSError as error:
        return Check("clock", "warn", f"cannot be compared with the file system's ({error.strerror})")
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(now()))
    if now() < Path(__file__).stat().st_mtime - 86400:
        return Check("clock", "warn", f"{stamp} UTC is before this program was installed", "set the clock")
    if abs(skew) > SKEW_SECONDS:
        found = f"{stamp} UTC, {abs(skew):.0f} s {'behind' if skew > 0 else 'ahead of'} the file system's"
        return Check("clock", "warn", found, "synchronise the clocks: locks of live runs may look abandoned")
    return Check("clock", "ok", f"{stamp} UTC, as the file system's")


def text_output() -> Check:
    """Whether any text can be printed."""
    encoding = (getattr(sys.stdout, "encoding", None) or "unknown").lower().replace("-", "")
    if encoding == "utf8":
        return Check("text output", "ok", "UTF-8")
    return Check("text output", "warn", encoding, "set PYTHONUTF8=1: generated text may not be printable")


def environment() -> Iterator[Check]:
    """Every variable of the allow-list that is set."""
    for name in dict.fromkeys([*EFFECTS, *ENVIRONMENT]):
        value = os.environ.get(name)
        if value is None:
            continue
        remedy = ""
        if name in ("TRITON_INTERPRET", "CUDA_LAUNCH_BLOCKING") and value not in ("", "0"):
            remedy = f"unset {name} to train at full speed"
        elif name == "CUDA_VISIBLE_DEVICES" and value in ("", "-1"):
            remedy = "unset CUDA_VISIBLE_DEVICES to use a GPU"
        elif name in ranks.NUMBERS and not ranks.is_torchrun():
            remedy = f"unset {name}: it is left over, and ignored; torchrun or the application itself start processes"
        elif name == "OMP_NUM_THREADS" and not (value.isdigit() and int(value) >= 1):
            remedy = "set OMP_NUM_THREADS to a number from 1 up"
        found = f"{value!r}: {EFFECTS.get(name, 'recorded with every run')}"
        yield Check(f"${name}", "warn" if remedy else "ok", found, remedy)


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next((place for place in (folder, *folder.absolute().parents) if place.exists()), Path.cwd())


@contextlib.contextmanager
def _scratch(place: Path) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix=".archlab-doctor-", dir=place))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:,.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:,.0f} MiB"
