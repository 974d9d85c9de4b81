"""What the operating system says of a disk, in our words; and the last words that fit on a full one."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from app.run.atomic import make_directory, storage_error
from app.run.errors import StorageError
from app.run.paths import require_folder

#: of a disk, whatever was being written; the rest, such as a missing file, can be anything's fault
_OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], need: int | None = None) -> Iterator[None]:
    """Whatever the operating system refuses inside is a :class:`~app.run.errors.StorageError` about this file."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path, need) from error


def disk_error(error: OSError, folder: str | os.PathLike[str]) -> StorageError | None:
    """The message for an error of a disk that nobody nearer to it has named; None for one of another kind.

    Args:
        error: from anywhere.
        folder: what is named where the error names no file.
    """
    return storage_error(error, error.filename or folder) if error.errno in _OF_A_DISK else None


def make_folder(path: str | os.PathLike[str], option: str) -> Path:
    """Makes a folder for results, with its parents, unless it is there.

    Args:
        path: with ``~`` expanded.
        option: what names it, for the message.

    Raises:
        ConfigurationError: it cannot be a folder, see :func:`~app.run.paths.require_folder`.
        StorageError: it cannot be made.
    """
    require_folder(path, option)
    folder = Path(path)
    try:
        make_directory(folder)
    except OSError as error:
        raise storage_error(error, folder, elsewhere=f"name another folder with {option}") from error
    return folder


def write_at(descriptor: int, data: bytes, offset: int, path: str | os.PathLike[str]) -> int:
    """Writes all of ``data`` at an offset, in one call of the system where it takes that; returns the end.

    Raises:
        StorageError: naming the file and the bytes that it needs.
    """
    view = memoryview(data)
    try:
        while view:
            n_written = os.pwrite(descriptor, view, offset)
            view, offset = view[n_written:], offset + n_written
    except OSError as error:
        # Of a limit the whole size counts, of a full disk what is to be added.
        need = offset + len(view) if error.errno == errno.EFBIG else len(data)
        raise storage_error(error, path, need) from error
    return offset


def require_linked(descriptor: int, path: str | os.PathLike[str]) -> None:
    """Refuses to go on writing to a file that is open but has been removed: nobody would ever read it.

    Raises:
        StorageError: it has no name any more.
    """
    if os.fstat(descriptor).st_nlink == 0:
        raise StorageError(
            f"cannot write {os.fspath(path)}: it was removed while it was written to; leave the folder of a run alone "
            "until it has ended"
        )


def overwrite(path: str | os.PathLike[str], text: str) -> None:
    """Replaces the text of a small file in the place that it already has on the disk.

    Neither a new file nor a new block is needed, so that it works on a disk that is full, as long as both texts fit in
    one block. It is one call of the system; what the machine's own crash leaves in the middle of it can be torn.

    Args:
        path: an existing file.
        text: ends with a line end; blanks before that make it as long as the old one.

    Raises:
        StorageError: not even that is possible.
    """
    with writing(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        n_missing = os.fstat(descriptor).st_size - len(text.encode())
        data = (text.removesuffix("\n") + " " * n_missing + "\n").encode()
        write_at(descriptor, data, 0, path)
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
