"""Checkpoint files: a kill leaves the old or the new one, and only what was written is ever read.

A checkpoint ``resume-000120.ckpt`` has a sidecar ``resume-000120.ckpt.sha256`` in the format of
``sha256sum -c``. Order of a write: the file is staged beside its target, hashed while it is written, and
synced; the sidecar is made durable; the file is renamed; the directory is synced. A file that has a matching
sidecar is therefore whole. Inside are tensors and plain values only, and nothing else is ever read.
"""

import contextlib
import errno
import hashlib
import io
import os
import re
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from app.run.atomic import is_temporary, staged, storage_error, sync_directory, write_text
from app.run.bounded import open_regular, read_bytes
from app.run.content import load, require_plain
from app.run.errors import ConfigurationError, IntegrityError

_NAME = re.compile(r"^(?P<kind>resume|best)-(?P<step>\d{6,})\.ckpt$")
_LINE = re.compile(r"^(?P<digest>[0-9a-f]{64}) [ *](?P<name>.+)$")
#: of what a run's checkpoint holds. 1: position in steps alone. 2: in windows, with the configuration and the place
FORMAT = 2
_SIDECAR_BYTES = 1 << 16  # it has one line, or two
_CHUNK = 8 << 20  # bytes; small enough for the hash to follow closely, large enough for full disk speed


# ---- names


def resume_name(step: int) -> str:
    """Name of the rolling checkpoint after ``step`` optimizer steps."""
    return f"resume-{step:06d}.ckpt"


def best_name(step: int) -> str:
    """Name of the checkpoint with the best validation loss, reached after ``step`` optimizer steps."""
    return f"best-{step:06d}.ckpt"


def sidecar_path(path: str | os.PathLike[str]) -> Path:
    """The file that holds a checkpoint's hash."""
    return Path(f"{os.fspath(path)}.sha256")


def list_checkpoints(directory: str | os.PathLike[str], kind: str = "resume") -> list[tuple[int, Path]]:
    """Step and path of the ``resume`` or ``best`` checkpoints, newest last; nothing is verified."""
    try:
        names = os.listdir(directory)
    except PermissionError as error:  # not the same as having none
        raise ConfigurationError(
            f"{directory}: cannot be read ({error.strerror}); make it readable"
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return []
        raise
    matches = [match for match in map(_NAME.match, names) if match and match["kind"] == kind]
    return sorted((int(match["step"]), Path(directory) / match[0]) for match in matches)


# ---- writing


class _Sink:
    """The file that ``torch.save`` writes to: small pieces gathered, large ones cut, sizes counted.

    After a failed write it swallows the rest: an exception thrown through the serializer's C++ destructors
    is not safe, and the count then says how many bytes the whole would have needed.
    """

    def __init__(self, file: BinaryIO):
        self.file = file
        self.size = 0
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data).cast("B")
        self.size += len(view)
        try:
            for start in range(0, len(view) if self.error is None else 0, _CHUNK):
                self.file.write(view[start : start + _CHUNK])
        except OSError as error:
            self.error = error
        return len(view)

    def flush(self) -> None:
        try:
            if self.error is None:
                self.file.flush()
        except OSError as error:
            self.error = error


class _TrailingHash(threading.Thread):
    """Hashes a growing file behind its writer, out of the page cache.

    The serializer reuses its buffers, so a thread that is handed them would have to copy; reading back costs
    less and runs while the writer waits for the disk.
    """

    def __init__(self, path: Path):
        super().__init__(name="checkpoint hash", daemon=True)
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed at the end of run
        self._hash = hashlib.sha256()
        self._is_complete = threading.Event()
        self._error: OSError | None = None
        self.start()

    def run(self) -> None:
        buffer = memoryview(bytearray(1 << 20))
        try:
            with self._file:
                while True:
                    # Asked before the read, so that nothing can be written between the two.
                    is_complete = self._is_complete.is_set()
                    count = self._file.readinto(buffer)
                    if count:
                        self._hash.update(buffer[:count])
                    elif is_complete:
                        return
                    else:
                        self._is_complete.wait(0.002)
        except OSError as error:
            self._error = error

    def digest(self) -> str:
        """The hash of the whole file, to be asked for once everything is flushed."""
        self._is_complete.set()
        self.join()
        if self._error is not None:
            raise self._error
        return self._hash.hexdigest()


def write(obj: object, path: str | os.PathLike[str], confirm: Callable[[], object] = lambda: None) -> str:
    """Writes a checkpoint and its sidecar, atomically and durably.

    Args:
        obj: tensors, numbers, texts and None in dicts, lists, tuples and sets.
        path: target; replaced if it exists, and until the very end either content verifies.
        confirm: called when the new file is whole and the first of those that are there is about to be
            replaced; what it raises leaves them as they are.

    Returns:
        The SHA-256 of the file, in hexadecimal.

    Raises:
        StorageError: when it cannot be written, naming the bytes needed and free; files that were there
            before are as they were.
        TypeError: when ``obj`` holds a value that could not be loaded again; its place is named.
    """
    require_plain(obj)
    target = Path(path)
    sink: _Sink | None = None
    with staged(target) as temporary:
        try:
            file = open(temporary, "wb", buffering=1 << 20)  # noqa: SIM115 - closed before the rename
            sink = _Sink(file)
            trailing = _TrailingHash(temporary)
            try:
                _serialize(obj, sink)
                sink.flush()
                if sink.error is not None:
                    raise sink.error
                os.fsync(file.fileno())
            finally:
                digest = trailing.digest()
                with contextlib.suppress(OSError):  # what a full disk refuses is still in the buffer
                    file.close()
            size = temporary.stat().st_size
            if size != sink.size:
                raise OSError(f"{size} of {sink.size} bytes arrived")
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()  # first, so that the free bytes named are those without it
            raise storage_error(error, target, sink.size if sink else None) from error
        confirm()
        line = f"{digest}  {target.name}\n"
        before = _own_digests(target)
        # When a file of this name exists already, both hashes stand there until the new one is in place.
        write_text(sidecar_path(target), line + "".join(f"{old}  {target.name}\n" for old in before))
        try:
            os.replace(temporary, target)
            sync_directory(target.parent)
        except OSError as error:
            raise storage_error(error, target, size) from error
    if before:
        write_text(sidecar_path(target), line)
    return digest


def _serialize(obj: object, sink: _Sink) -> None:
    """``torch.save`` without the archive's own CRC-32.

    The SHA-256 covers every byte and loading never looks at the CRC; computing it would take most of the
    time of a save, under the interpreter lock that the hash needs too.
    """
    import torch
    from torch import serialization

    before = serialization.get_crc32_options()
    serialization.set_crc32_options(False)
    try:
        torch.save(obj, sink)  # type: ignore[arg-type]
    finally:
        serialization.set_crc32_options(before)


def prune(
    directory: str | os.PathLike[str], kind: str, keep: int, stays: Callable[[int], bool] = lambda step: False
) -> list[Path]:
    """Deletes all but the newest ``keep`` checkpoints of a kind, and returns what was deleted.

    Only files with a sidecar count and are deleted: they were whole when written. Each goes before its
    sidecar, so that a kill in between leaves no file that looks unverified.

    Args:
        directory: the checkpoints of one run.
        kind: ``resume`` or ``best``.
        keep: number of the newest that stay.
        stays: whether the one of a step stays beside them.

    Raises:
        ValueError: when ``keep`` is below 1: the last one is never deleted.
        StorageError: when a file cannot be deleted.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}, must be at least 1")
    sound = [each for each in list_checkpoints(directory, kind) if sidecar_path(each[1]).is_file()]
    superfluous = [path for step, path in sound[:-keep] if not stays(step)]
    for path in superfluous:
        remove(path)
    return superfluous


def remove(path: str | os.PathLike[str]) -> None:
    """Deletes a checkpoint, durably, and then its sidecar: a history that was given up must not come back.

    Raises:
        StorageError: when one cannot be deleted.
    """
    try:
        Path(path).unlink(missing_ok=True)
        sync_directory(Path(path).parent)
        sidecar_path(path).unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, path) from error


def remove_orphan_sidecars(directory: str | os.PathLike[str]) -> list[Path]:
    """Removes sidecars whose checkpoint a kill kept from arriving; to be called by the holder of the lock."""
    try:
        names = set(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
    orphans = [
        Path(directory) / name
        for name in sorted(names)
        if name.endswith(".sha256") and not is_temporary(name) and name.removesuffix(".sha256") not in names
    ]
    for path in orphans:
        path.unlink(missing_ok=True)
    return orphans


# ---- reading


def verify(path: str | os.PathLike[str], *, require_sidecar: bool) -> None:
    """Compares a checkpoint with its sidecar.

    Args:
        path: the checkpoint.
        require_sidecar: whether a file without a sidecar is refused; otherwise it passes with a warning.

    Raises:
        IntegrityError: when it is missing, not a file, unreadable, or not what was written.
    """
    with _open(Path(path)) as file:
        _verify_open(file, Path(path), require_sidecar)


def read(path: str | os.PathLike[str], *, require_sidecar: bool = False) -> Any:
    """Verifies a checkpoint and loads it onto the CPU from the same open file.

    Args:
        path: the checkpoint.
        require_sidecar: as in :func:`verify`.

    Raises:
        IntegrityError: as in :func:`verify`, and when the file is not a checkpoint, is compressed, holds anything
            but tensors and plain values, or would take more memory than its size allows.
    """
    path = Path(path)
    with _open(path) as file:
        _verify_open(file, path, require_sidecar)
        before = os.fstat(file.fileno())
        try:
            content = load(file)
        except ValueError as error:
            raise _refusal(path, str(error)) from error
        except OSError as error:
            raise _refusal(path, f"cannot be read: {error.strerror}") from error
        after = os.fstat(file.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise _refusal(path, "was changed while it was read")
    return content


def newest_verified(
    directory: str | os.PathLike[str], skipped: list[tuple[Path, str]] | None = None
) -> Path | None:
    """The newest resume checkpoint that matches its sidecar; None when there is none.

    Before the first one is due, a validation may have left a best one: that holds all of the run as well.

    Args:
        directory: the checkpoints of one run.
        skipped: receives path and reason of every newer file that was passed over.
    """
    for _, path in reversed(list_checkpoints(directory) or list_checkpoints(directory, "best")):
        try:
            verify(path, require_sidecar=True)
        except IntegrityError as error:
            if skipped is not None:
                skipped.append((path, str(error).splitlines()[0]))
            continue
        return path
    return None


def _open(path: Path) -> io.BufferedReader:
    try:
        return open_regular(path)
    except FileNotFoundError:
        raise _refusal(path, "does not exist") from None
    except OSError as error:
        raise _refusal(path, f"cannot be read: {error.strerror}") from error


def _recorded_digests(path: Path) -> list[str]:
    """The hashes that a checkpoint's sidecar accepts: one, or two while the file is being replaced."""
    try:
        lines = read_bytes(sidecar_path(path), _SIDECAR_BYTES).decode(errors="replace").splitlines()
    except (OSError, ValueError):
        return []
    matches = [match for match in map(_LINE.match, lines[:2]) if match]
    return [match["digest"] for match in matches if match["name"] == path.name]


def _own_digests(path: Path) -> list[str]:
    """The recorded hash of the file that is there now; none when there is no file or no sidecar."""
    recorded = _recorded_digests(path)
    if not recorded or not path.is_file():
        return []
    if len(recorded) > 1:  # an earlier replacement was killed: only the file itself says which one it is
        with open(path, "rb") as file:
            return [hashlib.file_digest(file, "sha256").hexdigest()]
    return recorded


def _verify_open(file: io.BufferedReader, path: Path, require_sidecar: bool) -> None:
    if not sidecar_path(path).exists():
        if require_sidecar:
            raise _refusal(path, f"has no {sidecar_path(path).name} beside it, so it may be incomplete")
        warnings.warn(f"{path} has no {sidecar_path(path).name} beside it; it is not verified", stacklevel=3)
        return
    recorded = _recorded_digests(path)
    if not recorded:
        raise _refusal(path, f"cannot be verified: {sidecar_path(path).name} is damaged")
    try:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _refusal(path, f"cannot be read: {error.strerror}") from error
    if digest not in recorded:
        raise _refusal(path, f"is damaged: its SHA-256 is not the one in {sidecar_path(path).name}")


def _refusal(path: Path, what: str) -> IntegrityError:
    others = [found for _, found in reversed(list_checkpoints(path.parent)) if found != path]
    sound = next((found for found in others if _matches(found)), None)
    remedy = f"sound and newest beside it: {sound}" if sound else "use another checkpoint, or start a new run"
    return IntegrityError(f"{path}: {what}\n{remedy}")


def _matches(path: Path) -> bool:
    """Whether a checkpoint matches its sidecar, without a word about why not."""
    recorded = _recorded_digests(path)
    try:
        if not recorded or not path.is_file():
            return False
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() in recorded
    except OSError:
        return False
