"""Tensors on disk, found without loading the file and read a few megabytes at a time."""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.run.bounded import Budget, BudgetError, charge_json, open_regular
from app.run.content import ContentError, TensorPlace, describe

CHUNK_BYTES = 8 << 20  # of a piece, in float64
SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
MAX_HEADER_BYTES = 100 << 20  # the format's own limit

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass(frozen=True)
class StoredTensor:
    """A contiguous floating-point tensor in a file.

    Attributes:
        name: as in the file.
        shape: of the tensor.
        dtype: as stored.
        path: of the file.
        offset: of its first byte in the file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    path: Path
    offset: int

    def rows(self) -> Iterator[Tensor]:
        """The tensor as ``(rows, last axis)`` in float64, so many rows at a time as fit into a chunk.

        Raises:
            ValueError: the file ends too early, or one row does not fit.
        """
        width = self.shape[-1] if self.shape else 1
        n_rows = math.prod(self.shape[:-1])
        self._require_small(width, "a row")
        row_bytes = width * self.dtype.itemsize
        at_once = max(1, CHUNK_BYTES // (8 * width))
        with open_regular(self.path) as file:
            file.seek(self.offset)
            for start in range(0, n_rows, at_once):
                count = min(at_once, n_rows - start)
                raw = bytearray(count * row_bytes)
                if file.readinto(raw) != len(raw):
                    raise ContentError(f"{self.path}: ends inside of {self.name}; the file is incomplete")
                yield torch.frombuffer(raw, dtype=self.dtype).to(torch.float64).view(count, width)

    def vector(self) -> Tensor:
        """All entries in float64, ``(n,)``; for what is small.

        Raises:
            ValueError: the file ends too early, or they do not fit into a chunk.
        """
        self._require_small(math.prod(self.shape), "a norm")
        return torch.cat([rows.flatten() for rows in self.rows()])

    def _require_small(self, n: int, what: str) -> None:
        if 8 * n > CHUNK_BYTES:
            raise ValueError(
                f"{self.path}: {self.name} of shape {list(self.shape)} has {what} of {n:,} entries"
            )


def find(path: Path) -> list[StoredTensor]:
    """The floating-point tensors of a checkpoint file, or of all safetensors files in a directory, else of all others.

    Tensors without entries are left out.

    Args:
        path: ``.safetensors``, or what ``torch.save`` has written (of which only tensors and plain values are read).

    Raises:
        ContentError: a file is damaged, hostile, or holds something else.
        ValueError: nothing to read there, or no such file format.
        OSError: a file cannot be read.
    """
    files = [path]
    if path.is_dir():
        files = sorted(path.glob("*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))
        if not files:
            raise ValueError(f"{path}: holds no .safetensors and no pytorch_model*.bin; name a checkpoint")
    if files[0].suffix not in SUFFIXES:
        raise ValueError(f"{path}: is none of {', '.join(SUFFIXES)}")
    budget = Budget.of_file(sum(file.stat().st_size for file in files))
    found: list[StoredTensor] = []
    for file in files:
        read = _in_safetensors if file.suffix == ".safetensors" else _in_archive
        try:
            found += read(file, budget)
        except (ContentError, BudgetError) as error:
            raise ContentError(f"{file}: {error}") from error
    return found


def _in_safetensors(path: Path, budget: Budget) -> list[StoredTensor]:
    """Reads the header: eight bytes of length, then JSON with type, shape and offsets of each tensor."""
    with open_regular(path) as file:
        size = path.stat().st_size
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise ValueError(f"{path}: is no safetensors file")
        budget.charge(length)
        content = file.read(length)
    charge_json(content, budget)
    try:
        header: Any = json.loads(content.decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is no safetensors file: {error}") from error
    if not isinstance(header, dict):
        raise ValueError(f"{path}: is no safetensors file: its header is no object")
    header.pop("__metadata__", None)
    places = {name: _extent(name, entry, size - 8 - length) for name, entry in header.items()}
    end = 0
    for begin, next_end in sorted(places.values()):
        if begin < end:
            raise ContentError("is damaged: two of its tensors share bytes")
        end = max(end, next_end)
    found = []
    for name, entry in header.items():
        shape, dtype = tuple(entry["shape"]), _DTYPES.get(entry["dtype"])
        begin, end = places[name]
        if dtype is None:
            continue
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise ContentError(
                f"is damaged: {name!r} of shape {list(shape)} does not take {end - begin} bytes"
            )
        if end > begin:
            found.append(StoredTensor(name, shape, dtype, path, 8 + length + begin))
    return found


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a header, which names nothing twice: readers differ in which of the two they take."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header names a tensor or a field twice")
    return found


def _extent(name: str, entry: Any, n_bytes: int) -> tuple[int, int]:
    """Begin and end of a tensor in the bytes behind the header.

    Args:
        name: of the tensor.
        entry: type, shape and offsets, of anything at all.
        n_bytes: behind the header.
    """
    try:
        shape, (begin, end) = entry["shape"], entry["data_offsets"]
        numbers = (
            [*shape, begin, end] if isinstance(shape, list) and isinstance(entry["dtype"], str) else [-1]
        )
    except (KeyError, TypeError, ValueError):
        numbers = [-1]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ContentError(f"is damaged: its entry for {name!r} is none of a tensor")
    if not begin <= end <= n_bytes:
        raise ContentError(f"is incomplete: {name!r} takes bytes {begin:,} to {end:,} of {n_bytes:,}")
    return begin, end


def _in_archive(path: Path, budget: Budget) -> list[StoredTensor]:
    """Reads the structure of a ``torch.save`` archive, which tells where the bytes of each tensor are."""
    with open_regular(path) as file:
        content = describe(file, budget)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    found: list[StoredTensor] = []
    for name, place in state.items() if isinstance(state, Mapping) else ():
        if not isinstance(name, str) or not isinstance(place, TensorPlace):
            continue
        if place.dtype not in _DTYPES.values() or 0 in place.shape:
            continue
        if not place.is_contiguous:
            raise ValueError(f"{path}: {name} is stored with gaps; save it contiguous")
        offset = place.record.offset + place.offset * place.dtype.itemsize
        found.append(StoredTensor(name, place.shape, place.dtype, path, offset))
    return found
