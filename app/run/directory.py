"""Run directories: their layout, how one is made, and how one is found again."""

import os
import re
import secrets
from datetime import UTC, datetime
from pathlib import Path

from app.run.atomic import free_bytes, storage_error, sweep_temporaries, temporary_path
from app.run.checkpoint import list_checkpoints, remove_orphan_sidecars
from app.run.errors import ConfigurationError, StorageError
from app.run.lock import holder, is_held


class RunDirectory:
    """The files of one run.

    Args:
        path: the directory; it need not exist.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunDirectory) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)

    @property
    def checkpoints(self) -> Path:
        """Directory of the checkpoints and their sidecars."""
        return self.path / "checkpoints"

    @property
    def figures(self) -> Path:
        """Directory of the figures."""
        return self.path / "figures"

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def manifest(self) -> Path:
        """What was launched, with which code, versions and data."""
        return self.path / "run.json"

    @property
    def status(self) -> Path:
        """State, step, exit code and reason."""
        return self.path / "status.json"

    @property
    def metrics(self) -> Path:
        """One row per logged step."""
        return self.path / "metrics.csv"

    @property
    def details(self) -> Path:
        """Per-layer values, one line per step and key."""
        return self.path / "details.jsonl"

    @property
    def summary(self) -> Path:
        """Final figures."""
        return self.path / "summary.json"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer that the text was encoded with."""
        return self.path / "tokenizer.json"

    @property
    def is_run(self) -> bool:
        """Whether a run has been started here: a configuration, a manifest or a checkpoint exists."""
        if self.config.exists() or self.manifest.exists():
            return True
        return bool(list_checkpoints(self.checkpoints) or list_checkpoints(self.checkpoints, "best"))

    def sweep(self) -> list[Path]:
        """Removes what a killed process left half-written; to be called by the holder of the lock."""
        places = (self.path, self.checkpoints, self.figures)
        removed = [path for place in places for path in sweep_temporaries(place)]
        return removed + remove_orphan_sidecars(self.checkpoints)

    @classmethod
    def create_default(
        cls, root: str | os.PathLike[str] = "runs", stem: str = "run", required_bytes: int = 0
    ) -> "RunDirectory":
        """Makes ``<root>/<stem>/<UTC time to the millisecond>-<4 hex>/``, which nobody else has.

        Args:
            root: directory of all runs.
            stem: name of the experiment; characters other than letters, digits, ``.``, ``_`` and ``-``
                become ``-``.
            required_bytes: bytes that must be free.

        Raises:
            StorageError: when it cannot be made or too little is free.
        """
        _require_room(root, required_bytes)
        while True:
            now = datetime.now(UTC)
            stamp = f"{now:%Y%m%dT%H%M%S}.{now.microsecond // 1000:03d}Z-{secrets.token_hex(2)}"
            path = experiment_folder(root, stem) / stamp
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.mkdir()
            except FileExistsError as error:
                if path.parent.is_dir():
                    continue
                raise storage_error(error, path) from error
            except OSError as error:
                raise storage_error(error, path) from error
            made = cls(path)
            made._prepare()
            return made

    @classmethod
    def open_new(cls, path: str | os.PathLike[str], required_bytes: int = 0) -> "RunDirectory":
        """Makes ``path`` ready for a new run, with its parents; an existing empty directory will do.

        Raises:
            ConfigurationError: when it is a file or already holds a run.
            StorageError: when it cannot be written or too little is free.
        """
        made = cls(path)
        if made.path.exists() and not made.path.is_dir():
            raise ConfigurationError(f"--run_dir {path}: is a file; name a directory")
        if made.is_run:
            found = holder(made.path)
            if found is not None and is_held(made.path):
                owner = found[0]
                raise ConfigurationError(
                    f"--run_dir {path}: is in use by process {owner.pid} on host {owner.host} since"
                    f" {owner.since}; wait for it to end, or use another --run_dir"
                )
            raise ConfigurationError(
                f"--run_dir {path}: already holds a run; continue it with --resume {path} (or --resume auto),"
                " or use another --run_dir"
            )
        _require_room(path, required_bytes)
        try:
            made.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, made.path) from error
        made._prepare()
        return made

    def _prepare(self) -> None:
        """Makes the sub-directories and shows by doing that files can be written."""
        try:
            self.checkpoints.mkdir(exist_ok=True)
            self.figures.mkdir(exist_ok=True)
            for place in (self.path, self.checkpoints):
                probe = temporary_path(place / "probe")
                probe.write_bytes(b"written")
                probe.unlink()
        except OSError as error:
            raise storage_error(error, self.path) from error


def _require_room(path: str | os.PathLike[str], required_bytes: int) -> None:
    """Refuses a disk that is too full for a run, before anything is made on it."""
    free = free_bytes(path)
    if free is not None and free < required_bytes:
        raise StorageError(
            f"{os.fspath(path)}: {required_bytes:,} bytes needed for the checkpoints, {free:,} bytes free;"
            " free some space, or use a --run_dir on another disk"
        )


def experiment_folder(root: str | os.PathLike[str], stem: str) -> Path:
    """The folder of all runs of one experiment, see :meth:`RunDirectory.create_default`."""
    return Path(root) / (re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip(".-") or "run")


def resolve_run(argument: str | os.PathLike[str]) -> tuple[RunDirectory, Path | None]:
    """Finds the run that a user named.

    Args:
        argument: a run directory, or a file in its ``checkpoints``.

    Returns:
        The run, and the checkpoint when the argument was one.

    Raises:
        ConfigurationError: when it is neither; what was looked for is named.
    """
    path = Path(argument)
    run = RunDirectory(path)
    if path.is_dir():
        if run.is_run:
            return run, None
        raise ConfigurationError(
            f"{argument}: not a run directory (no config.yaml, no run.json, nothing in checkpoints/);"
            " name one that `app fit` has made, or one of its checkpoint files"
        )
    parent = path.parent if path.parent.name else Path.cwd() / path.parent
    owner = RunDirectory(parent.parent)
    is_inside = parent.name == "checkpoints" and owner.is_run
    if path.is_file():
        if is_inside:
            return owner, path
        raise ConfigurationError(
            f"{argument}: is a file, but not in the checkpoints/ of a run directory;"
            " name a run directory or one of its checkpoint files"
        )
    if is_inside:
        there = [
            found.name for kind in ("resume", "best") for _, found in list_checkpoints(path.parent, kind)
        ]
        raise ConfigurationError(f"{argument}: no such checkpoint; there are {', '.join(there) or 'none'}")
    raise ConfigurationError(f"{argument}: no such run directory or checkpoint file")
