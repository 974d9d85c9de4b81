"""``run.json``: what was launched, where, with which code and versions."""

import hashlib
import importlib.metadata
import os
import platform
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.run import arguments
from app.run.atomic import write_json, write_text
from app.run.bounded import read_json
from app.run.directory import RunDirectory
from app.run.errors import ConfigurationError

PACKAGES = (
    "archlab",
    "torch",
    "lightning",
    "torchmetrics",
    "jsonargparse",
    "datasets",
    "tokenizers",
    "tensorboard",
    "numpy",
)
# Only these: an environment also holds secrets.
ENVIRONMENT = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "SLURM_JOB_ID",
    "SLURM_NTASKS",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "NCCL_DEBUG",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TRITON_INTERPRET",
    "APP_OP_FORM",
)
_GIT_SECONDS = 5.0


def repository() -> Path | None:
    """The source checkout that the ``app`` package runs from; None when it is installed elsewhere.

    Only the directory that directly holds the package counts: an environment inside somebody else's
    repository must not be taken for that repository.
    """
    place = Path(__file__).resolve().parents[2]
    return place if (place / ".git").exists() else None


def _git(repo: Path, *arguments: str) -> str | None:
    """What git prints; None when it is missing, fails or takes longer than 5 s."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", os.fspath(repo), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, env=environment, timeout=_GIT_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def source_diff(repo: Path | None) -> str | None:
    """The difference between the checkout's tracked files and its last commit; None where unknown."""
    return None if repo is None else _git(repo, "diff", "--no-ext-diff", "--no-textconv", "HEAD")


def versions() -> dict[str, str | None]:
    """Versions of the packages that decide what a run does; None for one that is not installed."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def collect(
    argv: Sequence[str], *, seed: int | None, extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Describes this launch, for :func:`record_launch`; never fails.

    The text of the source difference is part of it; recording moves that into a file.

    Args:
        argv: the command line.
        seed: the run's seed.
        extra: further plain values: device, threads, fingerprints of data and tokenizer.
    """
    repo = repository()
    commit = None if repo is None else _git(repo, "rev-parse", "HEAD")
    untracked = None if repo is None else _git(repo, "ls-files", "-o", "--exclude-standard", "*.py", "*.yaml")
    try:
        n_cpus = len(os.sched_getaffinity(0))
    except AttributeError:
        n_cpus = os.cpu_count() or 1
    return {
        "command": list(argv),
        "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "host": socket.gethostname(),
        "process": os.getpid(),
        "seed": seed,
        "commit": commit.strip() if commit else None,
        "source_diff": source_diff(repo) or None,
        "untracked_files": untracked.splitlines() if untracked else [],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "n_cpus": n_cpus,
        "packages": versions(),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        **(extra or {}),
    }


def first_weights(run: RunDirectory) -> Path | None:
    """The checkpoint whose weights a run began with, the last time that it did; None where it took none."""
    begun = [launch for launch in launches_of(run) if launch.get("resumed_from") is None]
    named = begun[-1].get("init_from") if begun else None
    return Path(named) if named else None


def experiment(run: RunDirectory) -> str:
    """Name of the configuration that a run was begun with; empty where its command lines do not say."""
    for launch in reversed(launches_of(run)):
        words = launch.get("command")
        is_begun = launch.get("resumed_from") is None
        if is_begun and isinstance(words, list) and all(isinstance(word, str) for word in words):
            with suppress(ConfigurationError):
                if named := arguments.read(words).configs:
                    return Path(named[0]).stem
    return ""


def last_configuration(run: RunDirectory) -> str | None:
    """The digest of the configuration that the last launch of a run resolved; None where it says none."""
    launches = launches_of(run)
    found = launches[-1].get("configuration_sha256") if launches else None
    return found if isinstance(found, str) else None


def has_had_checkpoints(run: RunDirectory) -> bool:
    """Whether a launch has gone on from a checkpoint of this run."""
    return any(launch.get("resumed_from") is not None for launch in launches_of(run))


def launches_of(run: RunDirectory) -> list[dict[str, Any]]:
    """What the manifest holds, first to last; nothing where it is missing or no manifest."""
    try:
        return [dict(launch) for launch in read_json(run.manifest)["launches"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def record_launch(run: RunDirectory, launch: Mapping[str, Any]) -> None:
    """Appends a launch to the run's manifest; a resumed run has one entry per launch.

    The source difference goes to ``source.diff``, that of the n-th launch to ``source-<n>.diff`` where it is
    another one.

    Raises:
        StorageError: when the files cannot be written.
    """
    launches = launches_of(run)
    diff = launch.get("source_diff")
    digest = hashlib.sha256(diff.encode()).hexdigest() if diff else None
    if diff and all(earlier.get("source_diff_sha256") != digest for earlier in launches):
        write_text(run.path / ("source.diff" if not launches else f"source-{len(launches) + 1}.diff"), diff)
    entry = {name: value for name, value in launch.items() if name != "source_diff"}
    write_json(run.manifest, {"launches": [*launches, entry | {"source_diff_sha256": digest}]})
