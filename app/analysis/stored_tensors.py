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

CHUNK_BYTES = 8 << 20
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
            ValueError: the file ends too early.
        """
        width = self.shape[-1] if self.shape else 1
        n_rows = 1
        for size in self.shape[:-1]:
            n_rows *= size
        row_bytes = width * self.dtype.itemsize
        at_once = max(1, CHUNK_BYTES // max(row_bytes, 1))
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for start in range(0, n_rows if width else 0, at_once):
                count = min(at_once, n_rows - start)
                raw = bytearray(count * row_bytes)
                if file.readinto(raw) != len(raw):
                    raise ValueError(f"{self.path}: ends inside of {self.name}; the file is incomplete")
                yield torch.frombuffer(raw, dtype=self.dtype).to(torch.float64).view(count, width)

    def vector(self) -> Tensor:
        """All entries in float64, ``(n,)``; for what is small."""
        return torch.cat([rows.flatten() for rows in self.rows()])


def find(path: Path) -> list[StoredTensor]:
    """The floating-point tensors of a checkpoint file, or of all safetensors files in a directory, else of all others.

    Args:
        path: ``.safetensors``, or what ``torch.save`` has written (of which only tensors and plain values are read).

    Raises:
        ValueError: nothing to read there, or no such file format.
    """
    if path.is_dir():
        files = sorted(path.glob("*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))
        if not files:
            raise ValueError(f"{path}: holds no .safetensors and no pytorch_model*.bin; name a checkpoint")
        return [tensor for file in files for tensor in find(file)]
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: is none of {', '.join(SUFFIXES)}")
    return _in_safetensors(path) if path.suffix == ".safetensors" else _in_archive(path)


def _in_safetensors(path: Path) -> list[StoredTensor]:
    """Reads the header: eight bytes of length, then JSON with type, shape and offsets of each tensor."""
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= MAX_HEADER_BYTES:
            raise ValueError(f"{path}: is no safetensors file")
        try:
            header: Any = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: is no safetensors file: {error}") from error
    if not isinstance(header, dict):
        raise ValueError(f"{path}: is no safetensors file: its header is no object")
    found = [
        _described(name, entry, path, 8 + length) for name, entry in header.items() if name != "__metadata__"
    ]
    return [stored for stored in found if stored is not None]


def _described(name: str, entry: Any, path: Path, start: int) -> StoredTensor | None:
    """A tensor by its entry in the header; None for one of whole numbers.

    Args:
        name: of the tensor.
        entry: type, shape and offsets, of anything at all.
        path: of the file.
        start: of the tensors' bytes in the file.
    """
    try:
        dtype, shape, (begin, end) = str(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]
        is_whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        is_whole = False
    if not is_whole:
        raise ValueError(f"{path}: is no safetensors file: its entry for {name!r} is damaged")
    if dtype not in _DTYPES:
        return None
    if end - begin != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise ValueError(
            f"{path}: is damaged: {name!r} of shape {list(shape)} does not take {end - begin} bytes"
        )
    return StoredTensor(name, shape, _DTYPES[dtype], path, start + begin)


def _in_archive(path: Path) -> list[StoredTensor]:
    """Loads the structure of a ``torch.save`` archive with tensors that know where their bytes are."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with FakeTensorMode():
            content = torch.load(path, weights_only=True)
    except Exception as error:  # damaged bytes make the unpickler raise anything at all
        raise ValueError(f"{path}: cannot be read as a checkpoint ({type(error).__name__})") from error
    found: list[StoredTensor] = []
    state = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    for name, tensor in state.items():
        if not (
            isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype in _DTYPES.values()
        ):
            continue
        if not tensor.is_contiguous():
            raise ValueError(f"{path}: {name} is stored with gaps; save it contiguous")
        begin = tensor.untyped_storage()._checkpoint_offset
        if begin is None:
            raise ValueError(f"{path}: {name} has no bytes of its own in the file")
        offset = int(begin) + int(tensor.storage_offset()) * tensor.element_size()
        found.append(StoredTensor(name, tuple(tensor.shape), tensor.dtype, path, offset))
    return found
