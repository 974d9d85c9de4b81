"""Checkpoints made to fill memory, to run something or to be read wrongly; most have a kilobyte."""

import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from pickle import (
    APPEND,
    APPENDS,
    BINGET,
    BININT1,
    BININT2,
    BINPERSID,
    BINPUT,
    BINUNICODE,
    BUILD,
    DUP,
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_SET,
    EMPTY_TUPLE,
    GLOBAL,
    LONG1,
    LONG4,
    MARK,
    NEWFALSE,
    PROTO,
    REDUCE,
    SETITEM,
    SETITEMS,
    STOP,
    TUPLE,
    TUPLE1,
    TUPLE2,
)  # fmt: skip

BEGIN = PROTO + b"\x02"


def text(value: str) -> bytes:
    """The operation that makes a text."""
    return BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    """The operation that makes a whole number."""
    return LONG1 + b"\x09" + value.to_bytes(9, "little", signed=True)


def name(module: str, attribute: str) -> bytes:
    """The operation that makes what a name stands for."""
    return GLOBAL + f"{module}\n{attribute}\n".encode()


def put(place: int) -> bytes:
    """The operation that remembers the last value."""
    return BINPUT + bytes([place])


def got(place: int) -> bytes:
    """The operation that makes a remembered value again."""
    return BINGET + bytes([place])


ENCODE, SET, COUNTER = name("_codecs", "encode"), name("builtins", "set"), name("collections", "Counter")


def storage(n_entries: int = 4) -> bytes:
    """The operations that make the storage of an archive's first record."""
    described = [text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), number(n_entries)]
    return MARK + b"".join(described) + TUPLE + BINPERSID


def tensor(shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, n_entries: int = 4) -> bytes:
    """The operations that make a tensor on the archive's first record, of four numbers."""
    sizes, steps = (MARK + b"".join(map(number, numbers)) + TUPLE for numbers in (shape, stride))
    hooks = name("collections", "OrderedDict") + EMPTY_TUPLE + REDUCE
    arguments = [storage(n_entries), number(offset), sizes, steps, NEWFALSE, hooks]
    return name("torch._utils", "_rebuild_tensor_v2") + MARK + b"".join(arguments) + TUPLE + REDUCE


def made_often(function: bytes, arguments: bytes, times: int) -> bytes:
    """A list of the results of one call, made anew each time from eight bytes."""
    prepared = EMPTY_LIST + MARK + function + put(0) + arguments + put(1) + MARK
    return prepared + (got(0) + got(1) + REDUCE) * times + TUPLE + APPENDS


def archive(path: Path, content: bytes, entries: bytes = bytes(16), n_storages: int = 1) -> Path:
    """An archive in the form of ``torch.save`` with this pickle, and storages of these bytes."""
    with zipfile.ZipFile(path, "w") as written:
        written.writestr("archive/data.pkl", content)
        written.writestr("archive/byteorder", "little")
        for index in range(n_storages):
            written.writestr(f"archive/data/{index}", entries)
        written.writestr("archive/version", "3\n")
    return path


def safetensors(path: Path, header: object, content: bytes = bytes(16), length: int | None = None) -> Path:
    """A safetensors file with this header, a value or its text, and perhaps another length of it."""
    raw = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + content)
    return path


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., object], *arguments: object):
        self.parts = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.parts


_DIGITS = text("0123456789" * 100)
_MANY = 1_500_000  # operations, of a byte each
_SMALL_NUMBERS = b"".join(BININT2 + struct.pack("<H", n) for n in range(50_000))
_COUNTS = b"".join(BININT2 + struct.pack("<H", n) + BININT1 + b"\x01" for n in range(25_000))
_TUPLES = text("x") + b"".join(put(n) + got(n) + TUPLE2 for n in range(60))
_LISTS = EMPTY_LIST + put(0) + b"".join(
    EMPTY_LIST + MARK + got(n) + got(n) + APPENDS + put(n + 1) for n in range(60)
) + TUPLE2 * 60  # fmt: skip

#: what each is, and its pickle
PICKLES: dict[str, bytes] = {
    # calls that make more of what they are given
    "chained encode": ENCODE * 23 + _DIGITS + text("latin1") + TUPLE2 + REDUCE + (text("hex") + TUPLE2 + REDUCE) * 22,
    "encode to more bytes": ENCODE + _DIGITS + text("utf-32") + TUPLE2 + REDUCE,
    "encode again and again": made_often(ENCODE, text("0" * 100_000) + text("latin1") + TUPLE2, 10_000),
    "sets again and again": made_often(SET, EMPTY_LIST + MARK + _SMALL_NUMBERS + APPENDS + TUPLE1, 1_000),
    "counters again and again": made_often(COUNTER, EMPTY_DICT + MARK + _COUNTS + SETITEMS + TUPLE1, 1_000),
    "a counter of a text": COUNTER + _DIGITS + TUPLE1 + REDUCE,
    "a storage of 10**12 bytes": name("torch.storage", "UntypedStorage") + number(10**12) + TUPLE1 + REDUCE,
    "a buffer of 10**12 bytes": name("builtins", "bytearray") + number(10**12) + TUPLE1 + REDUCE,
    "bytes of a number": name("builtins", "bytes") + number(10**12) + TUPLE1 + REDUCE,
    "zeros": name("torch", "zeros") + number(10**12) + TUPLE1 + REDUCE,
    "a size of a list": name("torch", "Size") + EMPTY_LIST + TUPLE1 + REDUCE,
    "a complex of a text": name("builtins", "complex") + text("1" * 1000) + TUPLE1 + REDUCE,
    # names that begin or end like allowed ones
    "setattr": name("builtins", "setattr") + MARK + EMPTY_DICT + text("x") + _DIGITS + TUPLE + REDUCE,
    "set_trace": name("builtins", "set_trace") + EMPTY_TUPLE + REDUCE,
    "encode_more": name("_codecs", "encode_more") + EMPTY_TUPLE + REDUCE,
    "another OrderedDict": name("mycollections", "OrderedDict") + EMPTY_TUPLE + REDUCE,
    "a storage that is none": name("torch", "EvilStorage") + EMPTY_TUPLE + REDUCE,
    "a dotted name": name("torch", "Size.__class__") + EMPTY_TUPLE + REDUCE,
    "an escaped name": GLOBAL + b"p\\x6fsix\nsystem\n" + text("true") + TUPLE1 + REDUCE,
    # what refers to itself
    "tuples doubled": _TUPLES,
    "lists doubled": _LISTS,
    "a tuple of tuples as a key": EMPTY_DICT + _TUPLES + _DIGITS + SETITEM,
    "a list in itself": EMPTY_LIST + put(0) + got(0) + APPEND,
    "nested": EMPTY_LIST * 100_000 + APPEND * 99_999,
    # small operations that make large values
    "a number of 200 MB": LONG4 + struct.pack("<i", 200_000_000) + b"\xff",
    "empty sets": EMPTY_LIST + MARK + EMPTY_SET * _MANY + APPENDS,
    "empty dicts": EMPTY_LIST + MARK + EMPTY_DICT * _MANY + APPENDS,
    "empty lists": EMPTY_LIST + MARK + EMPTY_LIST * _MANY + APPENDS,
    "marks": MARK * _MANY,
    "duplicates": EMPTY_LIST + MARK + _DIGITS + DUP * _MANY + APPENDS,
    "numbers of 28 bytes": EMPTY_LIST + MARK + (BININT2 + b"\xff\xff") * _MANY + APPENDS,
    "a wide character": EMPTY_LIST + MARK + text("x" * 30_000_000 + "\U0001f600") + APPENDS,
    "tensors again and again": EMPTY_LIST + MARK + tensor((4,), (1,)).replace(TUPLE + REDUCE, TUPLE + put(0) + REDUCE)
    + (name("torch._utils", "_rebuild_tensor_v2") + got(0) + REDUCE) * 200_000 + APPENDS,
    # streams that do not end where they should
    "two pickles": EMPTY_DICT + STOP + BEGIN + EMPTY_DICT,
    "two values": EMPTY_DICT + EMPTY_DICT,
    "an open mark": MARK + EMPTY_DICT,
    # tensors and storages
    "expanded": tensor((1 << 40,), (0,)),
    "expanded along one axis": tensor((2, 1 << 30), (1, 0)),
    "strides that repeat": tensor((3, 2), (1, 1)),
    "beyond the storage": tensor((5,), (1,)),
    "behind the storage": tensor((1,), (1,), offset=4),
    "before the storage": tensor((1,), (1,), offset=-1),
    "a negative size": tensor((-4,), (1,)),
    "a negative stride": tensor((2,), (-1,), offset=1),
    "a huge shape without entries": tensor((0, 1 << 60), (1, 1)),
    "a storage larger than its record": tensor((100,), (1,), n_entries=1000),
    "a storage of a negative size": tensor((0,), (1,), n_entries=-1),
    "a storage as a value": storage(),
    "a function as a value": EMPTY_DICT + text("x") + ENCODE + SETITEM,
    "attributes": name("collections", "OrderedDict") + EMPTY_TUPLE + REDUCE + EMPTY_DICT + text("items") + text("x")
    + SETITEM + BUILD,
}  # fmt: skip
PICKLES = {what: BEGIN + content + STOP for what, content in PICKLES.items()} | {
    "a newer protocol": pickle.dumps({"a": Call(print, "this was run")}, protocol=4)
}


def gain(n: int, begin: int, end: int, layer: int = 0) -> dict[str, object]:
    """A header's entry of a gain of ``n`` numbers."""
    return {f"h.{layer}.ln_1.weight": {"dtype": "F32", "shape": [n], "data_offsets": [begin, end]}}


def _all(*entries: dict[str, object]) -> dict[str, object]:
    return {key: value for entry in entries for key, value in entry.items()}


_TWICE = json.dumps(gain(4, 0, 16))[:-1] + ", " + json.dumps(gain(4, 0, 16))[1:]
#: what each is, its header, and the exit code: 4 for a damaged file, 2 for what is no such file
HEADERS: dict[str, tuple[object, int]] = {
    "beyond the file": (gain(1 << 36, 0, 1 << 38), 4),
    "all of it beyond the file": (gain(4, 1 << 40, (1 << 40) + 16), 4),
    "decreasing": (gain(4, 16, 0), 4),
    "overlapping": (_all(gain(3, 0, 12), gain(3, 4, 16, layer=1)), 4),
    "the same bytes a thousand times": (_all(*(gain(4, 0, 16, layer) for layer in range(1000))), 4),
    "another number of entries": (gain(1 << 60, 0, 16), 4),
    "a shape that is a text": ({"h.0.ln_1.weight": {"dtype": "F32", "shape": "4", "data_offsets": [0, 16]}}, 4),
    "an entry that is none": ({"h.0.ln_1.weight": 1}, 4),
    "a million small objects": ('{"a": [' + "{}," * 2_000_000 + "{}]}", 4),
    "nested": ('{"a":' * 50_000 + "1" + "}" * 50_000, 2),
    "a name twice": (_TWICE, 2),
    "no entries of huge shapes": (
        _all(*({f"h.{n}.ln_1.weight": {"dtype": "F32", "shape": [0, 1 << 50], "data_offsets": [0, 0]}} for n in range(9))), 2
    ),
    "layers without end": (gain(4, 0, 16, layer=10**12), 2),
    "a kind of weight for each layer": (
        _all(*({f"h.{9000 + n}.norm{n}.weight": {"dtype": "F32", "shape": [1], "data_offsets": [4 * n, 4 * n + 4]}} for n in range(900))), 2
    ),
}  # fmt: skip
