"""Pickles of tensors and plain values, read by an interpreter of their own.

An ordinary one, also where it allows only certain names, calls what a name stands for with whatever the pickle says:
a kilobyte of that fills any memory. Here a name is an entry in a table, takes the one form of arguments that
``torch.save`` writes, and every operation is charged to a budget before it makes anything. What a pickle refers to
several times must stay small when it is written out.
"""

import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from itertools import chain
from pickletools import opcodes
from typing import Any

from app.run.archive import ContentError, Record
from app.run.bounded import MAX_DEPTH, Budget, BudgetError
from app.run.pickle_calls import ENTRY_BYTES, ONLY_PLAIN, SCALARS, Calls, Tensors, named, require_key

#: bytes that any operation, and one that makes a container, take at most
_STEP_BYTES, _CONTAINER_BYTES = 40, 256
_NAMES = {ord(operation.code): operation.name for operation in opcodes}
#: values may be so large when each is written out as often as it is referred to: times the pickle, and bytes
_UNFOLDED, _UNFOLDED_BYTES = 16, 4 << 20


def read(pickle: bytes, records: Mapping[str, Record], tensors: Tensors, budget: Budget) -> Any:
    """The value of a pickle.

    Args:
        pickle: of protocol 2 or 3.
        records: of the archive that it lies in, which hold the tensors' entries.
        tensors: makes tensors.
        budget: is charged for everything that is made.

    Raises:
        ContentError: it holds something else than tensors and plain values, or is damaged.
        BudgetError: it would take more memory than the file's size allows.
    """
    try:
        return _Interpreter(pickle, tensors, Calls(records, tensors, budget), budget).run()
    except (ContentError, BudgetError):
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, struct.error) as error:
        raise ContentError(
            f"is damaged or not a checkpoint ({type(error).__name__} while reading)"
        ) from error


class _Interpreter:
    """Runs one pickle; a method per operation."""

    def __init__(self, pickle: bytes, tensors: Tensors, calls: Calls, budget: Budget):
        import torch

        self._pickle = pickle
        self._position = 0
        self._calls = calls
        self._charge = budget.charge
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stack below each open mark
        self._memo: dict[int, Any] = {}
        self._leaves = {*SCALARS, torch.dtype, torch.device, torch.Size, *tensors.kinds}

    def run(self) -> Any:
        begin, protocol = self._take(1), self._number("<B")
        if begin != b"\x80" or not 2 <= protocol <= 5:
            raise ContentError("is damaged or not a checkpoint: its pickle does not begin like one")
        if protocol > 3:
            raise ContentError(
                f"is of pickle protocol {protocol}, {ONLY_PLAIN} of protocol 2, as torch.save writes it"
            )
        operations: dict[int, Callable[[], None]] = {}
        while (code := self._pickle[self._position]) != ord("."):
            self._position += 1
            self._charge(_STEP_BYTES)
            if code not in operations:
                operations[code] = self._operation(code)
            operations[code]()
        if len(self._stack) != 1 or self._below or self._position + 1 != len(self._pickle):
            raise ContentError("is damaged or not a checkpoint: its pickle does not end where it should")
        self._require_plain(self._stack[0])
        return self._stack[0]

    def _operation(self, code: int) -> Callable[[], None]:
        """The method of an operation."""
        name = _NAMES.get(code)
        if name is None:
            raise ContentError("is damaged or not a checkpoint: its pickle makes no sense")
        method: Callable[[], None] | None = getattr(self, f"_{name.lower()}", None)
        if method is None:
            raise ContentError(f"is damaged, or holds what no checkpoint does: the pickle operation {name}")
        return method

    def _require_plain(self, root: Any) -> None:
        """Refuses what is no plain value, nested too deep or into itself, or refers to the same things too often."""
        left = _UNFOLDED * len(self._pickle) + _UNFOLDED_BYTES
        levels = [iter((root,))]
        while levels:
            for value in levels[-1]:
                kind = type(value)
                left -= 8 + (len(value) if kind is str or kind is bytes else 0)
                if kind in (list, tuple, set):
                    levels.append(iter(value))
                    break
                if kind in (dict, OrderedDict, Counter):
                    levels.append(chain(value, value.values(), getattr(value, "__dict__", {}).values()))
                    break
                if kind not in self._leaves:
                    raise ContentError(f"holds {getattr(value, 'path', 'a bare storage')}, {ONLY_PLAIN}")
            else:
                levels.pop()
            if left < 0 or len(levels) > MAX_DEPTH + 1:
                raise ContentError(
                    "holds values that are nested too deep, or refer to the same ones too often"
                )

    # ---- the pickle's bytes, and the stack

    def _take(self, n_bytes: int) -> bytes:
        """The next bytes of the pickle."""
        taken = self._pickle[self._position : self._position + n_bytes]
        if len(taken) != n_bytes:
            raise ContentError("is damaged or not a checkpoint: its pickle ends too early")
        self._position += n_bytes
        return taken

    def _number(self, form: str) -> Any:
        """The next number of the pickle."""
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self) -> str:
        """The next line of the pickle."""
        end = self._pickle.index(b"\n", self._position, self._position + 256)
        line = self._pickle[self._position : end].decode("ascii")
        self._position = end + 1
        return line

    def _marked(self) -> list[Any]:
        """What stands on the stack above the last mark."""
        marked, self._stack = self._stack, self._below.pop()
        return marked

    def _last(self, n: int) -> list[Any]:
        """Takes the last ``n`` values off the stack."""
        taken = self._stack[-n:]
        if len(taken) != n:
            raise ContentError("is damaged or not a checkpoint: its pickle uses what it has not made")
        del self._stack[-n:]
        return taken

    # ---- plain values

    def _none(self) -> None:
        self._stack.append(None)

    def _newtrue(self) -> None:
        self._stack.append(True)

    def _newfalse(self) -> None:
        self._stack.append(False)

    def _binint(self) -> None:
        self._stack.append(self._number("<i"))

    def _binint1(self) -> None:
        self._stack.append(self._number("<B"))

    def _binint2(self) -> None:
        self._stack.append(self._number("<H"))

    def _long1(self) -> None:
        self._charge(_CONTAINER_BYTES)
        self._stack.append(int.from_bytes(self._take(self._number("<B")), "little", signed=True))

    def _binfloat(self) -> None:
        self._stack.append(self._number(">d"))

    def _binunicode(self) -> None:
        n_bytes = self._number("<I")
        self._charge(2 * min(n_bytes, len(self._pickle)) + 64)
        raw = self._take(n_bytes)
        if not raw.isascii():
            self._charge(4 * n_bytes)  # one wide character makes all of them wide
        self._stack.append(raw.decode("utf-8", "surrogatepass"))

    # ---- containers

    def _mark(self) -> None:
        self._charge(_CONTAINER_BYTES)
        self._below.append(self._stack)
        self._stack = []

    def _empty_tuple(self) -> None:
        self._stack.append(())

    def _tuple(self) -> None:
        self._push_tuple(self._marked())

    def _tuple1(self) -> None:
        self._push_tuple(self._last(1))

    def _tuple2(self) -> None:
        self._push_tuple(self._last(2))

    def _tuple3(self) -> None:
        self._push_tuple(self._last(3))

    def _push_tuple(self, entries: list[Any]) -> None:
        self._charge(64 + 8 * len(entries))
        self._stack.append(tuple(entries))

    def _empty_list(self) -> None:
        self._charge(_CONTAINER_BYTES)
        self._stack.append([])

    def _append(self) -> None:
        self._extend(self._last(1))

    def _appends(self) -> None:
        self._extend(self._marked())

    def _extend(self, entries: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise ContentError("is damaged or not a checkpoint: its pickle appends to what is no list")
        self._charge(16 * len(entries))
        self._stack[-1].extend(entries)

    def _empty_dict(self) -> None:
        self._charge(_CONTAINER_BYTES)
        self._stack.append({})

    def _setitem(self) -> None:
        self._update(self._last(2))

    def _setitems(self) -> None:
        self._update(self._marked())

    def _update(self, entries: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) not in (dict, OrderedDict, Counter) or len(entries) % 2:
            raise ContentError("is damaged or not a checkpoint: its pickle adds keys to what has none")
        self._charge(ENTRY_BYTES * len(entries))
        for key, value in zip(entries[::2], entries[1::2], strict=True):
            require_key(key)
            target[key] = value

    # ---- what is referred to, and what is called

    def _binput(self) -> None:
        self._remember(self._number("<B"))

    def _long_binput(self) -> None:
        self._remember(self._number("<I"))

    def _remember(self, place: int) -> None:
        self._charge(ENTRY_BYTES)
        self._memo[place] = self._stack[-1]

    def _binget(self) -> None:
        self._stack.append(self._memo[self._number("<B")])

    def _long_binget(self) -> None:
        self._stack.append(self._memo[self._number("<I")])

    def _global(self) -> None:
        self._stack.append(named(self._line(), self._line()))

    def _binpersid(self) -> None:
        self._charge(_CONTAINER_BYTES)
        self._stack.append(self._calls.storage(*self._stack.pop()))

    def _reduce(self) -> None:
        self._charge(_CONTAINER_BYTES)
        self._stack.append(self._calls.call(*self._last(2)))

    def _build(self) -> None:
        """Attributes: the versions of its modules that a network's ``state_dict()`` carries beside its tensors."""
        state = self._stack.pop()
        if type(self._stack[-1]) is not OrderedDict or type(state) is not dict or {*state} - {"_metadata"}:
            raise ContentError(f"holds an object with attributes, {ONLY_PLAIN}")
        vars(self._stack[-1]).update(state)
