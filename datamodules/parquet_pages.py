"""Sizes that the pages of a parquet file claim, looked at before a library takes memory for them.

The library believes the packed and unpacked size in the header of a page, whatever the file has, and its own view
of the file's description ends the process where a part of it is damaged. Both are structures in Thrift's compact form
(https://github.com/apache/parquet-format, ``FileMetaData`` and ``PageHeader``).
"""

from collections.abc import Collection, Iterator
from typing import IO, Any

#: an unpacked page; writers aim at one megabyte, but some only look after a thousand rows of a megabyte each
MAX_PAGE_BYTES = 1 << 30
_MAX_DESCRIPTION_BYTES = 16 << 20
_MAX_HEADER_BYTES = 1 << 16  # it holds the least and the largest value, which writers cut
_MAX_DEPTH = 16
_TRUE, _FALSE, _BYTE, _INTEGERS, _DOUBLE, _BINARY, _LISTS, _MAP, _STRUCT = (
    1,
    2,
    3,
    (4, 5, 6),
    7,
    8,
    (9, 10),
    11,
    12,
)


class PageError(ValueError):
    """Pages that are not what the file says of them."""


def largest_page(file: IO[bytes], leaves: Collection[int], n_bytes: int) -> int:
    """Walks through the pages of one column; the unpacked bytes of the largest.

    No value of the column is larger, however often a dictionary or a common beginning lets it come again.

    Args:
        file: opened for reading; its position is changed.
        leaves: numbers of the column's parts in each row group, by the schema, which the library goes by too.
        n_bytes: size of the file.

    Raises:
        PageError: a page that the file does not hold, or that is larger than :data:`MAX_PAGE_BYTES`.
    """
    try:
        return max((_largest(file, *place) for place in _places(file, leaves, n_bytes)), default=0)
    except (IndexError, KeyError, TypeError, AttributeError):
        raise PageError("its description or a page header is damaged") from None


def _places(file: IO[bytes], leaves: Collection[int], n_bytes: int) -> Iterator[tuple[int, int]]:
    """First byte, and the one behind the last, of the column's pages in each row group."""
    file.seek(max(n_bytes - 8, 0))
    length = int.from_bytes(file.read(4), "little")
    if not 0 < length <= min(n_bytes - 8, _MAX_DESCRIPTION_BYTES):
        raise PageError(f"its description takes {length:,} bytes")
    file.seek(n_bytes - 8 - length)
    for group in _Values(file.read(length)).struct()[4]:
        for leaf in leaves:
            about = group[1][leaf][3]
            start = about[9]
            if 0 < about.get(11, 0) < start:  # of a dictionary
                start = about[11]
            if not 0 <= start <= start + about[7] <= n_bytes:
                raise PageError(f"a column takes {about[7]:,} bytes from {start:,} on, of {n_bytes:,}")
            yield start, start + about[7]


def _largest(file: IO[bytes], start: int, end: int) -> int:
    largest = 0
    while start < end:
        file.seek(start)
        header = _Values(file.read(min(_MAX_HEADER_BYTES, end - start)))
        found = header.struct()
        unpacked, packed = found[2], found[3]
        start += header.position + packed
        if not (packed >= 0 and start <= end and 0 <= unpacked <= MAX_PAGE_BYTES):
            raise PageError(f"a page claims {packed:,} bytes that unpack to {unpacked:,}")
        largest = max(largest, unpacked)
    return largest


class _Values:
    """Reads structures from bytes; :attr:`position` is behind the last one."""

    def __init__(self, content: bytes):
        self._content = content
        self.position = 0

    def struct(self, depth: int = _MAX_DEPTH) -> dict[int, Any]:
        """The values of a structure by their field numbers."""
        found, field = {}, 0
        while byte := self._byte():
            field = field + (byte >> 4) if byte >> 4 else self._integer()
            kind = byte & 15
            found[field] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth - 1)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if depth == 0:
            raise PageError("values of its description are nested too deep")
        if kind in _INTEGERS:
            return self._integer()
        if kind == _BINARY:
            return self._bytes(self._varint())
        if kind == _STRUCT:
            return self.struct(depth)
        if kind in (_TRUE, _FALSE, _BYTE):  # a truth value in a list takes a byte
            return self._byte()
        if kind == _DOUBLE:
            return self._bytes(8)
        if kind in _LISTS:
            byte = self._byte()
            n_entries = byte >> 4 if byte >> 4 < 15 else self._varint()
            return [self._value(byte & 15, depth - 1) for _ in range(n_entries)]
        if kind == _MAP:
            n_entries = self._varint()
            kinds = self._byte() if n_entries else 0
            return [
                (self._value(kinds >> 4, depth - 1), self._value(kinds & 15, depth - 1))
                for _ in range(n_entries)
            ]
        raise PageError(f"its description holds a value of no kind ({kind})")

    def _byte(self) -> int:
        self.position += 1
        return self._content[self.position - 1]

    def _bytes(self, count: int) -> bytes:
        self.position += count
        if self.position > len(self._content):
            raise IndexError
        return self._content[self.position - count : self.position]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise PageError("its description holds a number of too many bits")

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
