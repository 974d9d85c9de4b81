"""Files that are either the old ones or the new ones, whatever moment the process is killed at.

Everything is staged *beside* its target: a rename is atomic only inside one file system, and a run directory
is often on another one than the system's temporary directory.
"""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.run.errors import StorageError
from app.run.strict_json import to_json

_TEMPORARY = re.compile(r"^\..+\.\d+\.tmp$")


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


def storage_error(
    error: OSError,
    path: str | os.PathLike[str],
    need: int | None = None,
    elsewhere: str = "use a folder on another disk",
) -> StorageError:
    """The message for a failed write: which file, why, how much is needed and free, and what to do.

    Args:
        error: what the operating system said.
        path: the file that was to be written, not its staging name.
        need: bytes the file takes, where known.
        elsewhere: how to write to another place.
    """
    reason = os.strerror(error.errno) if error.errno else str(error)
    facts = [f"{need:,} bytes needed"] if need is not None else []
    if error.errno == errno.ENOSPC:
        facts += _room(path)
        remedy = f"free some space, or {elsewhere}"
    elif error.errno == errno.EDQUOT:
        remedy = f"free some of your quota, or {elsewhere}"
    elif error.errno == errno.EFBIG:
        limit = _file_size_limit()
        facts += [f"a file may have {limit:,} here (ulimit -f)"] if limit is not None else []
        remedy = f"raise the limit, or {elsewhere}" if limit is None else "raise the limit"
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        facts, remedy = [], f"make the directory writable, or {elsewhere}"
    else:
        facts, remedy = [], f"check the disk and the directory, or {elsewhere}"
    parts = [f"cannot write {os.fspath(path)}: {reason}", *([", ".join(facts)] if facts else []), remedy]
    return StorageError("; ".join(parts))


def _room(path: str | os.PathLike[str]) -> list[str]:
    """What is free where a path is: bytes, or that it is not bytes which are missing."""
    free = free_bytes(path)
    found = [f"{free:,} bytes free"] if free is not None else []
    for place in (Path(path), *Path(path).parents):
        with contextlib.suppress(OSError):
            counted = os.statvfs(place)
            if counted.f_files and not counted.f_favail:
                found.append("no further file possible (inodes used up)")
            break
    return found


def _file_size_limit() -> int | None:
    """Bytes that a file of this process may have; None where the file system alone sets the limit."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def sync_file(path: str | os.PathLike[str]) -> None:
    """Makes the content of a file durable, whoever has written it; its name is another matter."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Makes what was created, renamed and removed in a directory durable."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # one that may be written to and not read offers nothing to sync by
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and user-space file systems cannot sync a directory and say so; theirs is best effort.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def make_directory(path: str | os.PathLike[str], exist_ok: bool = True) -> None:
    """Makes a directory and the missing ones above it, durably: a file is no safer than the names on its way.

    Args:
        path: of the directory.
        exist_ok: whether it may be there already.
    """
    missing = [place for place in (Path(path), *Path(path).parents) if not place.exists()]
    Path(path).mkdir(parents=True, exist_ok=exist_ok)
    for place in missing:
        sync_directory(place.parent)


def publish(temporary: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Gives a finished staging file its name: first its content is made durable, then the name."""
    sync_file(temporary)
    os.replace(temporary, path)
    sync_directory(Path(path).parent)


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
            temporary.write_bytes(data)
            publish(temporary, path)
        except OSError as error:
            raise storage_error(error, path, len(data)) from error


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Replaces the file ``path`` by ``obj`` as indented, strict JSON; see :func:`write_text`."""
    write_text(path, json_text(obj))


def json_text(obj: Any) -> str:
    """``obj`` as :func:`write_json` writes it."""
    return to_json(obj, indent=2, ensure_ascii=False) + "\n"


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
