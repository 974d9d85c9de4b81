"""What real code asks of the file system: every name it makes or takes away, every content, every sync.

The code works on real files. :class:`Recorder` stands between it and the operating system, and compares the real
folder with what the calls should have made of it, so that a call it does not know is found out.
"""

import builtins
import io
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = 0


@dataclass(frozen=True)
class Event:
    """What happened.

    Attributes:
        kind: ``folder`` or ``file`` (one was made), ``names`` (of a folder), ``content`` (of a file), ``sync`` (of
            either) or ``mark``.
        target: the folder's or file's number; the mark's name.
        value: names and the numbers that they now stand for, None for none; the content; the mark's value.
        path: of what it is about, for people.
    """

    kind: str
    target: Any
    value: Any = None
    path: str = ""


class Recorder:
    """Records what happens to the files of one folder while it is entered.

    Args:
        root: an existing, empty folder, which itself is safe.
    """

    def __init__(self, root: Path):
        self.root = root.resolve()  # as the system names open files
        self.events: list[Event] = []
        self._numbers = itertools.count(1)
        self._folders: dict[int, dict[str, int]] = {ROOT: {}}
        self._contents: dict[int, bytes] = {}
        self._turn = threading.RLock()
        self._originals: list[tuple[Any, str, Any]] = []
        self._open = builtins.open

    def mark(self, **marks: Any) -> None:
        """Notes what the code has been told to be true from here on."""
        with self._turn:
            self._observe()
            self.events += [Event("mark", name, value) for name, value in marks.items()]

    def __enter__(self) -> "Recorder":
        for name in ("mkdir", "rmdir", "unlink", "remove", "rename", "replace", "fsync", "fdatasync"):
            self._intercept(os, name, getattr(self, f"_{name}"))
        for owner in (builtins, io, os):
            self._intercept(owner, "open", self._opened)
        return self

    def __exit__(self, *error: object) -> None:
        for owner, name, original in reversed(self._originals):
            setattr(owner, name, original)
        self._originals.clear()

    def _intercept(self, owner: Any, name: str, note: Callable[..., None]) -> None:
        original = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            with self._turn:
                self._observe()
                result = original(*args, **kwargs)
                note(*args, **kwargs)
                self._observe()
                return result

        self._originals.append((owner, name, original))
        setattr(owner, name, call)

    # -- the calls --------------------------------------------------------------------------------------

    def _opened(self, path: Any, *args: Any, dir_fd: int | None = None, **kwargs: Any) -> None:
        if not isinstance(path, int) and (place := self._place(path, dir_fd)) is not None:
            folder, name = place
            real = self.root / self._path(folder) / name
            if name not in self._folders[folder] and real.is_file():
                self._name(folder, {name: self._number(b"")})

    def _mkdir(self, path: Any, *args: Any, dir_fd: int | None = None, **kwargs: Any) -> None:
        if (place := self._place(path, dir_fd)) is not None:
            folder, name = place
            self._name(folder, {name: self._number(None)})

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        if (place := self._place(path, dir_fd)) is not None:
            folder, name = place
            self._name(folder, {name: None})

    _remove = _rmdir = _unlink

    def _rename(self, source: Any, target: Any) -> None:
        before, after = self._place(source), self._place(target)
        if before is not None and after is not None:
            assert before[0] == after[0], f"{source} was moved to another folder: {target}"
            number = self._folders[before[0]][before[1]]
            self._name(before[0], {before[1]: None, after[1]: number})

    _replace = _rename

    def _fsync(self, descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        path = os.readlink(f"/proc/self/fd/{number}")
        if path == str(self.root):
            self.events.append(Event("sync", ROOT, path="."))
        elif (place := self._place(path)) is not None and place[1] in self._folders[place[0]]:
            folder, name = place
            path = os.path.relpath(path, self.root)
            self.events.append(Event("sync", self._folders[folder][name], path=path))

    _fdatasync = _fsync

    # -- the folder as it should be ---------------------------------------------------------------------

    def _place(self, path: Any, dir_fd: int | None = None) -> tuple[int, str] | None:
        """The folder and the name in it; None of what lies elsewhere."""
        if dir_fd is not None:
            path = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), path)
        path = os.path.abspath(os.fsdecode(path))
        relative = os.path.relpath(path, self.root)
        if relative == "." or relative.startswith(".."):
            return None
        *parents, name = relative.split(os.sep)
        folder = ROOT
        for parent in parents:
            folder = self._folders[folder][parent]
        return folder, name

    def _path(self, wanted: int) -> str:
        return next(path for path, number in self._reachable() if number == wanted)

    def _reachable(self, folder: int = ROOT, path: str = "") -> Iterator[tuple[str, int]]:
        yield path, folder
        for name, number in self._folders[folder].items():
            if number in self._folders:
                yield from self._reachable(number, os.path.join(path, name))
            else:
                yield os.path.join(path, name), number

    def _number(self, content: bytes | None) -> int:
        number = next(self._numbers)
        if content is None:
            self._folders[number] = {}
        else:
            self._contents[number] = content
        self.events.append(Event("folder" if content is None else "file", number))
        return number

    def _name(self, folder: int, changes: dict[str, int | None]) -> None:
        self.events.append(
            Event("names", folder, changes, os.path.join(self._path(folder), *list(changes)[-1:]))
        )
        for name, number in changes.items():
            if number is None:
                self._folders[folder].pop(name)
            else:
                self._folders[folder][name] = number

    def _observe(self) -> None:
        for path, number in list(self._reachable()):
            real = self.root / path
            if number in self._folders:
                found = sorted(os.listdir(real))
                assert found == sorted(self._folders[number]), f"{path or '.'}: changed by an unknown call"
                continue
            with self._open(real, "rb") as file:
                content = file.read()
            if content != self._contents[number]:
                self._contents[number] = content
                self.events.append(Event("content", number, content, path))
