"""What a checkpoint may hold: tensors and plain values, checked when saved and the only thing that is ever read.

The file is an archive in the form of ``torch.save``. Nothing in it is run, and it takes no more memory than twice its
bytes and 64 MB, whatever it says.
"""

import io
import os
import sys
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any

from app.run.archive import ContentError, Record, records
from app.run.bounded import MAX_DEPTH, Budget
from app.run.pickle_calls import TensorPlace, Tensors, overlaps, require_key
from app.run.plain_pickle import read

if TYPE_CHECKING:
    import torch

__all__ = ["ContentError", "TensorPlace", "describe", "load", "require_plain"]


def require_plain(value: object, place: str = "checkpoint", depth: int = 1) -> None:
    """Refuses, before it is saved, what would be refused when it is loaded.

    Args:
        value: what is to be saved.
        place: how an error names it.
        depth: of containers that it lies in.

    Raises:
        TypeError: naming the place and the type.
    """
    import torch

    plain = (type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device)
    kind = type(value)
    if kind in plain:
        return
    if depth > MAX_DEPTH:
        raise TypeError(f"{place[:200]} … is nested more than {MAX_DEPTH} deep, or into itself")
    if isinstance(value, torch.Tensor) and kind in (torch.Tensor, torch.nn.Parameter):
        _require_dense(value, place)
    elif isinstance(value, dict) and kind in (dict, OrderedDict, Counter):
        for key, entry in value.items():
            _require_key(key, place)
            require_plain(entry, f"{place}[{key!r}]", depth + 1)
    elif isinstance(value, list | tuple | set) and kind in (list, tuple, set):
        for index, entry in enumerate(value):
            if kind is set:
                _require_key(entry, place)
            require_plain(entry, f"{place}[{index}]", depth + 1)
    else:
        raise TypeError(
            f"{place} is a {kind.__module__}.{kind.__qualname__}; a checkpoint holds only tensors and plain"
            " values (None, bool, int, float, str, bytes in dict, list, tuple, set): nothing else is loaded"
        )


def _require_key(key: object, place: str) -> None:
    try:
        require_key(key)
    except ContentError as error:
        raise TypeError(f"{place} {error}") from error


def _require_dense(tensor: "torch.Tensor", place: str) -> None:
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or vars(tensor):
        raise TypeError(
            f"{place} is a tensor that is sparse, quantized, without data or has attributes"
            f" ({', '.join(vars(tensor)) or 'none'}); save `tensor.detach()` of a dense one"
        )
    if tensor.is_conj() or tensor.is_neg():
        raise TypeError(
            f"{place} is a tensor that stands for a conjugate or negative; save `tensor.resolve_conj()`"
        )
    if tensor.numel() and overlaps(tuple(tensor.shape), tensor.stride()):
        raise TypeError(f"{place} is a tensor whose strides repeat storage; save `tensor.contiguous()`")


def describe(file: io.BufferedReader, budget: Budget | None = None) -> Any:
    """The value of a checkpoint, with a :class:`TensorPlace` for each tensor, whose ``record`` says where it lies.

    Args:
        file: opened for reading; its position is changed.
        budget: is charged for it; one of the file's size by default.

    Raises:
        ContentError: the file is no checkpoint, is damaged, or holds something else.
        BudgetError: it would take more memory than its size allows.
        OSError: it cannot be read.
    """
    return _read(file, _Described(), budget or Budget.of_file(os.fstat(file.fileno()).st_size))


def load(file: io.BufferedReader) -> Any:
    """The value of a checkpoint, its tensors on the CPU.

    Args:
        file: opened for reading; its position is changed.

    Raises:
        ContentError, BudgetError: as in :func:`describe`.
        OSError: it cannot be read.
    """
    budget = Budget.of_file(os.fstat(file.fileno()).st_size)
    return _read(file, _Loaded(file, budget), budget)


def _read(file: io.BufferedReader, tensors: Tensors, budget: Budget) -> Any:
    found = records(file, budget)
    if "data.pkl" not in found:
        raise ContentError("is an archive, but not a checkpoint")
    if _content(file, found.get("byteorder", Record(0, 0)), budget) not in (b"", sys.byteorder.encode()):
        raise ContentError(
            "was written by a machine with another order of bytes; save it again on one like this"
        )
    return read(_content(file, found["data.pkl"], budget), found, tensors, budget)


def _content(file: io.BufferedReader, record: Record, budget: Budget) -> bytes:
    budget.charge(record.size)
    file.seek(record.offset)
    return file.read(record.size)


class _Described:
    """Leaves tensors where they are."""

    kinds: tuple[type, ...] = (TensorPlace,)

    def tensor(self, place: TensorPlace) -> TensorPlace:
        return place

    def parameter(self, tensor: TensorPlace, requires_grad: bool) -> TensorPlace:
        return tensor


class _Loaded:
    """Reads the entries of tensors; those that lie in one record share its memory, as they did when saved."""

    def __init__(self, file: io.BufferedReader, budget: Budget):
        import torch

        self.kinds: tuple[type, ...] = (torch.Tensor, torch.nn.Parameter)
        self._file = file
        self._budget = budget
        self._storages: dict[Record, torch.UntypedStorage] = {}

    def tensor(self, place: TensorPlace) -> "torch.Tensor":
        import torch

        if place.record not in self._storages:
            self._storages[place.record] = self._storage(place.record)
        storage = self._storages[place.record]
        tensor = torch.empty(0, dtype=place.dtype).set_(storage, place.offset, place.shape, place.stride)
        return tensor.requires_grad_(place.requires_grad)

    def parameter(self, tensor: "torch.Tensor", requires_grad: bool) -> "torch.nn.Parameter":
        import torch

        return torch.nn.Parameter(tensor, requires_grad)

    def _storage(self, record: Record) -> "torch.UntypedStorage":
        import torch

        self._budget.charge(record.size)
        entries = torch.empty(record.size, dtype=torch.uint8)
        self._file.seek(record.offset)
        buffer: Any = entries.numpy()
        if self._file.readinto(buffer) != record.size:
            raise ContentError("is damaged or not a checkpoint: it ends too early")
        return entries.untyped_storage()
