"""A text that one process has read, for others of the same machine: they read and hash nothing again.

Tokens in memory are written once to a file without a name, which each of the others maps; tokens of a prepared file are
mapped there. The rest goes along as a pickle: from a process to those that it has started itself, never from a file
that somebody else could have written.
"""

import io
import itertools
import mmap
import os
import pickle
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from datamodules.corpus import Corpus

_ALIGNMENT = 64


class _NotShared(Exception):
    """Tokens in a mapped file without a name, which is this process's alone."""


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        """Arrays of a mapped file by its name; everything else as usual."""
        mapped = value if isinstance(value, np.ndarray) else None
        while mapped is not None and not isinstance(mapped, np.memmap):
            mapped = mapped.base if isinstance(mapped.base, np.ndarray) else None
        if mapped is None:
            return NotImplemented
        if mapped.filename is None:
            raise _NotShared
        start = value.__array_interface__["data"][0] - mapped.__array_interface__["data"][0]
        return _mapped, (Path(mapped.filename), value.dtype.str, mapped.offset + start, value.shape)


def _mapped(file: Path, dtype: str, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.memmap(file, dtype=dtype, mode="r", offset=offset, shape=shape).view(np.ndarray)


def share(corpus: Corpus) -> tuple[IO[bytes], list[int]] | None:
    """A file without a name that holds the text, and the lengths of its parts; None where the text cannot be shared."""
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    try:
        _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(corpus)
    except _NotShared:
        return None
    parts = [stream.getbuffer(), *(buffer.raw() for buffer in buffers)]
    try:
        file = _without_name()
        for part in parts:
            file.write(part)
            file.write(bytes(-len(part) % _ALIGNMENT))
        file.flush()
    except OSError:  # no room
        return None
    return file, [len(part) for part in parts]


def _without_name() -> IO[bytes]:
    """A file that vanishes with the last process that has it open: in memory, where the system has such files."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("text"), "w+b")
    return tempfile.TemporaryFile()


def take(descriptor: int, lengths: Sequence[int]) -> Corpus:
    """The text that another process has shared.

    Args:
        descriptor: of its file.
        lengths: of the file's parts.
    """
    with open(descriptor, "rb") as file:
        # Private: arrays can be written to, as those that were read here could, and pages are shared until they are.
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    ends = itertools.accumulate(n + -n % _ALIGNMENT for n in lengths)
    parts = [
        content[end - (n + -n % _ALIGNMENT) : end - -n % _ALIGNMENT]
        for n, end in zip(lengths, ends, strict=True)
    ]
    corpus: Corpus = pickle.loads(parts[0], buffers=parts[1:])
    return corpus
