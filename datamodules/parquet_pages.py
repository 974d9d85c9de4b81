"""Sizes that the pages of a parquet file claim, looked at before a library takes memory for them.

Each page has a header in Thrift's compact form (https://github.com/apache/parquet-format, ``PageHeader``): its
packed and its unpacked size are the fields 3 and 2. The library believes both, whatever the file has.
"""

from typing import IO, Any

#: an unpacked page; writers aim at one megabyte, but some only look after a thousand rows of a megabyte each
MAX_PAGE_BYTES = 1 << 30
_MAX_HEADER_BYTES = 1 << 16  # it holds the least and the largest value, which writers cut
_MAX_DEPTH = 8
_BOOLEANS, _BYTE, _INTEGERS, _DOUBLE, _BINARY, _LISTS, _MAP, _STRUCT = (
    (1, 2),
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


def largest_page(file: IO[bytes], chunk: Any, n_bytes: int) -> int:
    """Walks through the pages of one column in one row group; the unpacked bytes of the largest.

    No value of the column is larger, however often a dictionary or a common beginning lets it come again.

    Args:
        file: opened for reading; its position is changed.
        chunk: the library's ``ColumnChunkMetaData``.
        n_bytes: size of the file.

    Raises:
        PageError: a page that the file does not hold, or that is larger than :data:`MAX_PAGE_BYTES`.
    """
    start = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < start:
        start = chunk.dictionary_page_offset
    end = start + chunk.total_compressed_size
    if not 0 <= start <= end <= n_bytes:
        raise PageError(f"a column takes bytes {start:,} to {end:,} of {n_bytes:,}")
    largest = 0
    while start < end:
        file.seek(start)
        header = _Header(file.read(min(_MAX_HEADER_BYTES, end - start)))
        unpacked, packed = header.sizes()
        start += header.position + packed
        if not (packed >= 0 and start <= end and 0 <= unpacked <= MAX_PAGE_BYTES):
            raise PageError(f"a page claims {packed:,} bytes that unpack to {unpacked:,}")
        largest = max(largest, unpacked)
    return largest


class _Header:
    """Reads one header from its bytes; :attr:`position` is behind it afterwards."""

    def __init__(self, content: bytes):
        self._content = content
        self.position = 0

    def sizes(self) -> tuple[int, int]:
        """Unpacked and packed size of the page; -1 where one is not said."""
        found = {2: -1, 3: -1}
        try:
            for field, kind in self._fields():
                if field in found and kind in _INTEGERS:
                    found[field] = self._integer()
                else:
                    self._skip(kind, _MAX_DEPTH)
        except IndexError:
            raise PageError("a page header is cut off") from None
        return found[2], found[3]

    def _fields(self) -> Any:
        field = 0
        while byte := self._byte():
            field = field + (byte >> 4) if byte >> 4 else self._integer()
            yield field, byte & 15

    def _skip(self, kind: int, depth: int) -> None:
        if depth == 0:
            raise PageError("a page header is nested too deep")
        if kind in _BOOLEANS:
            return
        if kind in _INTEGERS:
            self._varint()
        elif kind in (_BYTE, _DOUBLE):
            self.position += 1 if kind == _BYTE else 8
        elif kind == _BINARY:
            n_bytes = self._varint()
            self.position += n_bytes
        elif kind == _STRUCT:
            for _, inner in self._fields():
                self._skip(inner, depth - 1)
        elif kind in _LISTS:
            byte = self._byte()
            for _ in range(byte >> 4 if byte >> 4 < 15 else self._varint()):
                self._skip_entry(byte & 15, depth - 1)
        elif kind == _MAP:
            n_entries = self._varint()
            kinds = self._byte() if n_entries else 0
            for _ in range(n_entries):
                self._skip_entry(kinds >> 4, depth - 1)
                self._skip_entry(kinds & 15, depth - 1)
        else:
            raise PageError(f"a page header holds a field of no kind ({kind})")

    def _skip_entry(self, kind: int, depth: int) -> None:
        """Of a list or map, in which a truth value takes a byte."""
        self._skip(_BYTE if kind in _BOOLEANS else kind, depth)
        if self.position > len(self._content):
            raise IndexError

    def _byte(self) -> int:
        self.position += 1
        return self._content[self.position - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise PageError("a page header holds a number of too many bits")

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
