"""Where the records of an archive lie that ``torch.save`` has written: a ZIP file of stored, unpacked records.

Read here and not by a library: one of them would have to be trusted to find the same records as another, and makes
an object of a kilobyte for every entry of 46 bytes.
"""

import io
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

from app.run.bounded import Budget

_LOCAL = struct.Struct("<4s22xHH")
_ENTRY = struct.Struct("<4s4xHH8xIIHHH8xI")
_END = struct.Struct("<4sHHHHIIH")
_END_64 = struct.Struct("<4s12xIIQQQQ")
_LOCATOR = struct.Struct("<4s16x")
_LONG = 0xFFFFFFFF  # stands in place of a number of more than 32 bits
_ENTRY_BYTES = 512  # in memory


class ContentError(ValueError):
    """What speaks against a checkpoint's content, as the end of a sentence about the file."""


class Record(NamedTuple):
    """A record of an archive.

    Attributes:
        offset: of its first byte in the file.
        size: in bytes.
    """

    offset: int
    size: int


def records(file: io.BufferedReader, budget: Budget) -> dict[str, Record]:
    """The records of an archive by their names in its one folder; no two share a byte.

    Args:
        file: opened for reading; its position is changed.
        budget: is charged for them.

    Raises:
        ContentError: it is no such archive.
        BudgetError: it has more records than its size allows.
    """
    file.seek(0)
    if file.read(4) != b"PK\x03\x04":
        raise ContentError("is not a checkpoint")
    try:
        entries = list(_entries(file, budget))
    except (struct.error, UnicodeDecodeError, OverflowError) as error:
        raise ContentError("is truncated or not a checkpoint") from error
    names = {name.lower() for name, _ in entries}  # other readers' look-up ignores case
    folders = {name.partition("/")[0] for name in names}
    if len(folders) != 1 or len(names) != len(entries) or any(".." in name.split("/") for name in names):
        raise ContentError("is an archive, but not a checkpoint")
    end = 0
    for offset, size in sorted(record for _, record in entries):
        if offset < end:
            raise ContentError("is damaged: records of it overlap")
        end = offset + size
    return {name.partition("/")[2]: record for name, record in entries}


def _entries(file: io.BufferedReader, budget: Budget) -> Iterator[tuple[str, Record]]:
    """Name and place of every entry in the archive's directory."""
    n_bytes = os.fstat(file.fileno()).st_size
    n_entries, size, start = _directory(file, n_bytes)
    budget.charge(size)
    file.seek(start)
    directory = file.read(size)
    position = total = 0
    for _ in range(n_entries):
        budget.charge(_ENTRY_BYTES)
        signature, flags, method, packed, unpacked, n_name, n_extra, n_comment, header = _ENTRY.unpack_from(
            directory, position
        )
        position += _ENTRY.size
        name = directory[position : position + n_name].decode("ascii")
        extra = directory[position + n_name : position + n_name + n_extra]
        position += n_name + n_extra + n_comment
        unpacked, packed, header = _long_forms((unpacked, packed, header), extra)
        if signature != b"PK\x01\x02" or flags & 1 or len(extra) != n_extra:
            raise ContentError("is truncated or not a checkpoint")
        if method:
            raise ContentError("is compressed, and a checkpoint never is")
        total += unpacked
        if total > n_bytes:
            raise ContentError("claims to hold more bytes than it has")
        file.seek(header)
        signature, n_name, n_extra = _LOCAL.unpack(file.read(_LOCAL.size))
        offset = header + _LOCAL.size + n_name + n_extra
        if signature != b"PK\x03\x04" or packed != unpacked or offset + unpacked > start:
            raise ContentError("is damaged or not a checkpoint")
        yield name, Record(offset, unpacked)
    if position != size:
        raise ContentError("is truncated or not a checkpoint")


def _directory(file: io.BufferedReader, n_bytes: int) -> tuple[int, int, int]:
    """Number of entries, bytes and first byte of the archive's directory, as the last bytes of the file say."""
    end = n_bytes - _END.size
    file.seek(max(0, end - _LOCATOR.size))
    tail = file.read()
    signature, disk, first, here, n_entries, size, start, n_comment = _END.unpack(tail[-_END.size :])
    is_sound = signature == b"PK\x05\x06" and not n_comment
    if tail.startswith(b"PK\x06\x07"):
        end -= _LOCATOR.size + _END_64.size
        file.seek(max(0, end))
        signature, disk, first, here, n_entries, size, start = _END_64.unpack(file.read(_END_64.size))
        is_sound = is_sound and signature == b"PK\x06\x06"
    if not is_sound or disk or first or here != n_entries or start + size != end:
        raise ContentError("is truncated or not a checkpoint")
    return n_entries, size, start


def _long_forms(numbers: tuple[int, int, int], extra: bytes) -> list[int]:
    """Sizes and place of an entry, those that take more than 32 bits from its extra fields."""
    position, longer = 0, b""
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        if kind == 1:
            longer = extra[position + 4 : position + 4 + length]
        position += 4 + length
    values = iter(struct.unpack(f"<{len(longer) // 8}Q", longer[: len(longer) // 8 * 8]))
    return [next(values, number) if number == _LONG else number for number in numbers]
