"""What a pickle of tensors and plain values may name, and what it may call with which arguments."""

import functools
import math
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from app.run.archive import ContentError, Record
from app.run.bounded import Budget

if TYPE_CHECKING:
    import torch

#: bytes that an entry by key, and a tensor, take at most
ENTRY_BYTES, TENSOR_BYTES = 128, 1536
#: values that may be keys, beside flat tuples of them; types of PyTorch apart
SCALARS = (type(None), bool, int, float, complex, str, bytes)
ONLY_PLAIN = "and only tensors and plain values are loaded"
_MAX_KEY_PARTS = 64
_MAX_AXES = 64
_MAX_NUMBER = 1 << 48  # of a size or place, in entries
_STORAGES = {
    "BFloat16Storage": "bfloat16", "BoolStorage": "bool", "ByteStorage": "uint8", "CharStorage": "int8",
    "ComplexDoubleStorage": "complex128", "ComplexFloatStorage": "complex64", "DoubleStorage": "float64",
    "FloatStorage": "float32", "HalfStorage": "float16", "IntStorage": "int32", "LongStorage": "int64",
    "ShortStorage": "int16",
}  # fmt: skip


class Function(NamedTuple):
    """What may be called, with the name of the method that stands for it."""

    path: str
    method: str


class StorageType(NamedTuple):
    """What may be named as the type of a storage; without a dtype, bytes."""

    dtype: "torch.dtype | None"


class Storage(NamedTuple):
    """A record that holds entries of tensors.

    Attributes:
        record: of the archive.
        dtype: of the entries; None where only the tensor tells.
        size: of that many of them, or bytes.
    """

    record: Record
    dtype: "torch.dtype | None"
    size: int


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where the entries of a tensor lie.

    Attributes:
        record: of the archive.
        dtype: of the entries.
        offset: of the first one in the record, in entries.
        shape: of the tensor.
        stride: entries from one to the next along each axis; no two entries of the tensor are the same one.
        requires_grad: as saved.
    """

    record: Record
    dtype: "torch.dtype"
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: bool

    @property
    def is_contiguous(self) -> bool:
        """Whether the entries follow each other in the order of the axes, the last one fastest."""
        wanted = 1
        for size, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size > 1 and step != wanted:
                return False
            wanted *= size
        return True


class Tensors(Protocol):
    """What is made of the tensors in a pickle."""

    kinds: tuple[type, ...]

    def tensor(self, place: TensorPlace) -> Any:
        """A tensor."""

    def parameter(self, tensor: Any, requires_grad: bool) -> Any:
        """A parameter on what :meth:`tensor` gave."""


def overlaps(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether entries of a tensor share a place, as those of an expanded one do.

    Args:
        shape: without zeros.
        stride: >= 0 for each axis.
    """
    reach = 0
    for step, size in sorted((step, size) for step, size in zip(stride, shape, strict=True) if size > 1):
        if step <= reach:
            return True
        reach += step * (size - 1)
    return False


@functools.cache
def _named() -> dict[str, Any]:
    """Everything that a pickle may name, by module and name."""
    import torch

    dtypes = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
    found: dict[str, Any] = {
        # Whole bytes alone; quantised numbers mean nothing without their scale.
        **{f"torch {name}": x for name, x in dtypes.items() if not name.startswith(("q", "bits"))},
        **{f"torch {name}": StorageType(dtypes[dtype]) for name, dtype in _STORAGES.items()},
        "torch.storage UntypedStorage": StorageType(None),
    }
    functions = {
        "_codecs encode": "encoded",
        "collections Counter": "counter",
        "collections OrderedDict": "ordered_dict",
        "torch Size": "size",
        "torch device": "device",
        "torch._utils _rebuild_parameter": "parameter",
        "torch._utils _rebuild_tensor_v2": "tensor_of_typed_storage",
        "torch._utils _rebuild_tensor_v3": "tensor",
    }
    for module in ("builtins", "__builtin__"):
        functions |= {f"{module} {name}": method for name, method in _BUILTINS.items()}
    return found | {path: Function(path.replace(" ", "."), method) for path, method in functions.items()}


_BUILTINS = {"bytes": "empty_bytes", "complex": "complex", "set": "set"}


def named(module: str, name: str) -> Any:
    """What a name in a pickle stands for.

    Raises:
        ContentError: nothing that is tensor or plain value.
    """
    found = _named().get(f"{module} {name}")
    if found is None:
        raise ContentError(f"holds {module}.{name}, {ONLY_PLAIN}")
    return found


def require_key(key: Any) -> None:
    """Refuses a key that is no scalar and no flat tuple of such; to hash a tuple of tuples can take for ever.

    Raises:
        ContentError: it is none.
    """
    import torch

    parts = key if type(key) is tuple and len(key) <= _MAX_KEY_PARTS else (key,)
    if not all(type(part) in (*SCALARS, torch.dtype, torch.device, torch.Size) for part in parts):
        raise ContentError(f"has a key of the type {type(key).__name__}, {ONLY_PLAIN}")


class Calls:
    """Makes what is called, each from the one form of arguments that ``torch.save`` writes.

    Args:
        records: of the archive, which hold the tensors' entries.
        tensors: makes tensors.
        budget: is charged before anything is made.
    """

    def __init__(self, records: Mapping[str, Record], tensors: Tensors, budget: Budget):
        self._records = records
        self._tensors = tensors
        self._charge = budget.charge

    def call(self, function: Any, arguments: Any) -> Any:
        """The result of a call.

        Raises:
            ContentError: ``function`` is none, or these are no arguments of it.
        """
        if type(function) is not Function or type(arguments) is not tuple:
            raise ContentError(f"calls what is no function, {ONLY_PLAIN}")
        try:
            return getattr(self, f"_{function.method}")(*arguments)
        except TypeError as error:
            raise ContentError(f"calls {function.path} as no checkpoint does, {ONLY_PLAIN}") from error

    def storage(self, kind: Any, storage: Any, key: Any, _location: Any, size: Any) -> Storage:
        """A storage by what a pickle says of it.

        Raises:
            ContentError: there is none, or it is smaller.
        """
        _require(
            kind == "storage" and type(storage) is StorageType and type(key) is str and type(size) is int
        )
        record = self._records[f"data/{key}"]
        found = Storage(record, storage.dtype, size)
        if not 0 <= _n_bytes(found) <= record.size:
            raise ContentError(f"is damaged: storage {key} has {record.size:,} bytes, not {size:,} entries")
        return found

    def _encoded(self, text: str, encoding: str) -> bytes:
        """How this protocol writes bytes: each as the character of its number."""
        _require(type(text) is str and encoding == "latin1")
        self._charge(len(text))
        return text.encode("latin1")

    def _empty_bytes(self) -> bytes:
        return b""

    def _complex(self, real: float, imaginary: float) -> complex:
        _require(type(real) is float and type(imaginary) is float)
        return complex(real, imaginary)

    def _set(self, entries: list[Any]) -> set[Any]:
        _require(type(entries) is list)
        self._charge(ENTRY_BYTES * len(entries))
        for entry in entries:
            require_key(entry)
        return set(entries)

    def _counter(self, counts: dict[Any, Any]) -> Counter[Any]:
        _require(type(counts) is dict)
        self._charge(ENTRY_BYTES * len(counts))
        return Counter(counts)

    def _ordered_dict(self) -> OrderedDict[Any, Any]:
        return OrderedDict()

    def _size(self, sizes: tuple[int, ...]) -> "torch.Size":
        import torch

        _require_sizes(sizes)
        return torch.Size(sizes)

    def _device(self, kind: str, *index: int) -> "torch.device":
        import torch

        _require(type(kind) is str and all(type(number) is int for number in index))
        return torch.device(kind, *index)

    def _tensor_of_typed_storage(
        self,
        storage: Storage,
        offset: int,
        shape: tuple[int, ...],
        stride: tuple[int, ...],
        requires_grad: bool,
        hooks: Any,
        metadata: Any = None,
    ) -> Any:
        _require(type(storage) is Storage)
        return self._tensor(storage, offset, shape, stride, requires_grad, hooks, storage.dtype, metadata)

    def _tensor(
        self,
        storage: Storage,
        offset: int,
        shape: tuple[int, ...],
        stride: tuple[int, ...],
        requires_grad: bool,
        hooks: Any,
        dtype: "torch.dtype | None",
        metadata: Any = None,
    ) -> Any:
        import torch

        self._charge(TENSOR_BYTES)
        _require(type(storage) is Storage and type(dtype) is torch.dtype)
        _require(
            type(offset) is int and offset >= 0 and type(requires_grad) is bool and not (hooks or metadata)
        )
        _require_sizes(shape)
        _require_sizes(stride)
        _require(len(shape) == len(stride))
        assert dtype is not None
        if max(math.prod(size or 1 for size in shape), offset, *stride, 0) > _MAX_NUMBER:
            raise ContentError(
                f"is damaged: no tensor has the shape {list(shape)}, the strides {list(stride)}"
            )
        if 0 not in shape:
            last = offset + sum(step * (size - 1) for step, size in zip(stride, shape, strict=True))
            if (last + 1) * dtype.itemsize > _n_bytes(storage):
                raise ContentError(f"is damaged: a tensor of shape {list(shape)} reaches beyond its storage")
            if overlaps(shape, stride):
                raise ContentError(f"holds a tensor of shape {list(shape)} whose strides repeat storage")
        return self._tensors.tensor(TensorPlace(storage.record, dtype, offset, shape, stride, requires_grad))

    def _parameter(self, tensor: Any, requires_grad: bool, hooks: Any) -> Any:
        self._charge(TENSOR_BYTES)
        _require(type(tensor) in self._tensors.kinds and type(requires_grad) is bool and not hooks)
        return self._tensors.parameter(tensor, requires_grad)


def _n_bytes(storage: Storage) -> int:
    """Bytes that a storage says it has."""
    return storage.size * (1 if storage.dtype is None else storage.dtype.itemsize)


def _require(holds: bool) -> None:
    """Refuses arguments by the error that a call with too many or too few gives."""
    if not holds:
        raise TypeError("an argument is of another form")


def _require_sizes(sizes: Any) -> None:
    """Refuses what is no tuple of sizes."""
    _require(type(sizes) is tuple and len(sizes) <= _MAX_AXES)
    _require(all(type(size) is int and size >= 0 for size in sizes))
