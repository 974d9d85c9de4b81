"""Files that are either the old ones or the new ones, whatever moment the process is killed at.

Everything is staged *beside* its target: a rename is atomic only inside one file system, and a run directory
is often on another one than the system's temporary directory.
"""

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.run.errors import StorageError

_TEMPORARY = re.compile(r"^\..+\.\d+\.tmp$")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def temporary_path(path: str | os.PathLike[str]) -> Path:
    """The staging name of ``path``: ``.<name>.<pid>.tmp`` in the same directory."""
    target = Path(path)
    return target.with_name(f".{target.name}.{os.getpid()}.tmp")


def free_bytes(path: str | os.PathLike[str]) -> int | None:
    """Bytes that an ordinary user can still write where ``path`` is, or would be; None where unknown."""
    for place in (Path(path), *Path(path).parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return None


def storage_error(error: OSError, path: str | os.PathLike[str], need: int | None = None) -> StorageError:
    """The message for a failed write: which file, why, how much is needed and free, and what to do.

    Args:
        error: what the operating system said.
        path: the file that was to be written, not its staging name.
        need: bytes the file takes, where known.
    """
    reason = os.strerror(error.errno) if error.errno else str(error)
    parts = [f"cannot write {os.fspath(path)}: {reason}"]
    if error.errno in _FULL:
        free = free_bytes(path)
        sizes = [f"{need:,} bytes needed"] if need is not None else []
        sizes += [f"{free:,} bytes free"] if free is not None else []
        if sizes:
            parts.append(", ".join(sizes))
        parts.append("free some space and continue with --resume, or use a --run_dir on another disk")
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        parts.append("make the directory writable, or use another --run_dir")
    else:
        parts.append("check the disk and the directory")
    return StorageError("; ".join(parts))


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Makes renames and removals in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and user-space file systems cannot sync a directory and say so; theirs is best effort.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def staged(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives the staging path of ``path`` and removes what is left there, whatever happens inside."""
    temporary = temporary_path(path)
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replaces the file ``path`` by ``text`` (UTF-8), atomically and durably.

    Raises:
        StorageError: when it cannot be written; the old file is then as it was.
    """
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Replaces the file ``path`` by ``data``; see :func:`write_text`."""
    with staged(path) as temporary:
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_directory(Path(path).parent)
        except OSError as error:
            raise storage_error(error, path, len(data)) from error


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Replaces the file ``path`` by ``obj`` as indented JSON; see :func:`write_text`."""
    write_text(path, json.dumps(obj, indent=2, ensure_ascii=False) + "\n")


def is_temporary(name: str) -> bool:
    """Whether a file name is a staging name of :func:`temporary_path`, of any process."""
    return _TEMPORARY.match(name) is not None


def sweep_temporaries(directory: str | os.PathLike[str]) -> list[Path]:
    """Removes what killed processes left half-written in one directory, and returns what was removed.

    To be called by the holder of the directory's lock before it writes: every staging file is then an
    orphan. Process ids are not looked at, because a restarted container often gets the same one again.
    """
    removed: list[Path] = []
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return removed
    for entry in entries:
        if not is_temporary(entry.name):
            continue
        try:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise storage_error(error, entry.path) from error
        removed.append(Path(entry.path))
    return removed
