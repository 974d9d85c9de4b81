"""Run directories: their layout, how one is made, and how one is found again."""

import contextlib
import os
import re
import secrets
from datetime import UTC, datetime
from pathlib import Path

from app.run.atomic import free_bytes, make_directory, staged, storage_error, sweep_temporaries
from app.run.checkpoint import list_checkpoints, remove_orphan_sidecars
from app.run.errors import ConfigurationError, StorageError
from app.run.leftovers import foreign
from app.run.lock import holder
from app.run.paths import require_own_folder
from app.run.storage import make_folder, writing


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
        return self.path / "summary.json"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer that the text was encoded with."""
        return self.path / "tokenizer.json"

    @property
    def is_run(self) -> bool:
        """Whether a run has been started here: a configuration, a manifest or a checkpoint exists."""
        return self.config.exists() or self.manifest.exists() or self.has_checkpoint

    @property
    def has_checkpoint(self) -> bool:
        """Whether a checkpoint of any kind is there, be it whole or damaged."""
        return any(list_checkpoints(self.checkpoints, kind) for kind in ("resume", "best"))

    def require_free(self) -> None:
        """Refuses a directory in which no run can begin; one whose run has no checkpoint yet can begin again.

        Raises:
            ConfigurationError: it is in use, holds a run with a checkpoint, or anything else that is no run's.
        """
        found = holder(self.path)
        if found is not None and found.is_held:
            raise ConfigurationError(found.refusal(self.path, "--run_dir"))
        self.require_no_checkpoint()
        others = foreign(self.path)
        if others:
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            raise ConfigurationError(
                f"--run_dir {self}: holds other files ({', '.join(others[:3])}{more}), and a run has a folder of its"
                " own; name a new or an empty one"
            )

    def require_no_checkpoint(self) -> None:
        """Refuses a directory whose run can be gone on with."""
        if self.has_checkpoint:
            raise ConfigurationError(
                f"--run_dir {self}: already holds a run; continue it with --resume {self} (or --resume auto),"
                " or use another --run_dir"
            )

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
            ConfigurationError: a file or a link that leads nowhere is in its way.
            StorageError: when it cannot be made or too little is free.
        """
        _require_room(root, required_bytes)
        while True:
            now = datetime.now(UTC)
            stamp = f"{now:%Y%m%dT%H%M%S}.{now.microsecond // 1000:03d}Z-{secrets.token_hex(2)}"
            path = experiment_folder(root, stem) / stamp
            make_folder(path.parent, "--run_dir")
            try:
                make_directory(path, exist_ok=False)
            except FileExistsError:
                continue
            except OSError as error:
                raise storage_error(error, path) from error
            made = cls(path)
            try:
                made._prepare()
            except StorageError:
                for place in (made.checkpoints, made.figures, made.path):
                    with contextlib.suppress(OSError):
                        place.rmdir()
                raise
            return made

    @classmethod
    def open_new(cls, path: str | os.PathLike[str], required_bytes: int = 0) -> "RunDirectory":
        """Makes ``path`` ready for a run that begins, with its parents.

        An existing directory will do where it is empty, or holds a run without a checkpoint.

        Raises:
            ConfigurationError: it cannot be a folder of its own, see :func:`app.run.paths.require_own_folder`, or is
                not free, see :meth:`require_free`.
            StorageError: it cannot be written or too little is free.
        """
        made = cls(path)
        require_own_folder(path, "--run_dir")
        made.require_free()
        _require_room(path, required_bytes)
        make_folder(path, "--run_dir")
        made._prepare()
        return made

    def _prepare(self) -> None:
        """Makes the sub-directories and shows by doing that files can be written."""
        with writing(self.path):
            self.figures.mkdir(exist_ok=True)
            make_directory(self.checkpoints)
            for place in (self.path, self.checkpoints):
                with staged(place / "probe") as probe:
                    probe.write_bytes(b"written")


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
        argument: a run directory, or a file in its ``checkpoints`` or a folder of them.

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
    if parent.parent.name == "checkpoints":
        parent = parent.parent
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
