"""A file system that loses what was not synced: every state is computed that a crash may leave.

After a crash only this is sure: the content of a file as it was when the file was last synced, and the names in
a folder as they were when the folder was last synced. Of what came later any part may have survived, in any
order: each name by itself, and of a content nothing, a part, zeros in its place, or all.
"""

import itertools
import math
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from tests.support.recorded_calls import ROOT, Event, Recorder

#: states of one moment that are looked at; where there are more, so many are drawn, always with the two extremes
MAX_STATES = 300


@dataclass
class _File:
    safe: bytes = b""
    now: bytes = b""
    kept: int = 0  # leading bytes that no write has touched since the last sync

    def write(self, content: bytes) -> None:
        pairs = zip(self.safe[: self.kept], content, strict=False)
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
        self.kept, self.now = sum(1 for _ in same), content

    def sync(self) -> None:
        self.safe, self.kept = self.now, len(self.now)

    def survivals(self) -> list[bytes]:
        head, tail = self.now[: self.kept], self.now[self.kept :]
        found = [self.safe, head, head + tail[: len(tail) // 2], head + bytes(len(tail)), self.now]
        return list(dict.fromkeys(found))


@dataclass
class _Folder:
    safe: dict[str, int] = field(default_factory=dict)
    later: list[dict[str, int | None]] = field(default_factory=list)

    def after(self, survived: tuple[bool, ...]) -> dict[str, int]:
        names = dict(self.safe)
        for changes in itertools.compress(self.later, survived):
            for name, number in changes.items():
                if number is None:
                    names.pop(name, None)
                else:
                    names[name] = number
        return names

    def sync(self) -> None:
        self.safe, self.later = self.after((True,) * len(self.later)), []

    def survivals(self) -> list[tuple[bool, ...]]:
        n_later = len(self.later)
        if n_later <= 6:
            return list(itertools.product((False, True), repeat=n_later))
        # None; up to each; each alone; all but each; all.
        found = [tuple(i < n for i in range(n_later)) for n in range(n_later)]
        for alone in range(n_later):
            found += [tuple((i == alone) == chance for i in range(n_later)) for chance in (True, False)]
        return [*found, (True,) * n_later]


Tree = dict[str, bytes | None]


@dataclass(frozen=True)
class Crash:
    """One state that a crash may leave.

    Attributes:
        place: number of events that had happened.
        marks: what the code had been told by then.
        tree: path to content, None for a folder.
    """

    place: int
    marks: dict[str, Any]
    tree: Tree

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for states that a check cannot tell apart."""
        return tuple(sorted(self.marks.items())), tuple(sorted(self.tree.items()))

    def put(self, folder: Path) -> None:
        """Makes the state, in place of whatever is in the folder."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for path, content in self.tree.items():
            if content is None:
                (folder / path).mkdir()
            else:
                (folder / path).write_bytes(content)


def crashes(events: list[Event], unsynced: int | None = None) -> Iterator[Crash]:
    """Every state that a crash at any moment may leave, once each.

    Args:
        events: of a recorder.
        unsynced: place of a sync that does nothing; only states after it are given.
    """
    folders, files = {ROOT: _Folder()}, dict[int, _File]()
    marks, seen = dict[str, Any](), set[Any]()
    for place, event in enumerate(events, 1):
        if event.kind == "folder":
            folders[event.target] = _Folder()
        elif event.kind == "file":
            files[event.target] = _File()
        elif event.kind == "names":
            folders[event.target].later.append(event.value)
        elif event.kind == "content":
            files[event.target].write(event.value)
        elif event.kind == "mark":
            marks = marks | {event.target: event.value}
        elif place - 1 != unsynced:
            (files[event.target] if event.target in files else folders[event.target]).sync()
        if unsynced is not None and place <= unsynced:
            continue
        for tree in _trees(folders, files, place):
            crash = Crash(place, marks, tree)
            if crash.key not in seen:
                seen.add(crash.key)
                yield crash


def _trees(folders: dict[int, _Folder], files: dict[int, _File], seed: int) -> Iterator[Tree]:
    """What may be left at one moment."""
    known = _within_reach(folders, ROOT)
    uncertain = [(number, (files.get(number) or folders[number]).survivals()) for number in sorted(known)]
    options = [choices for _, choices in uncertain]
    chosen: Any = itertools.product(*options)
    if math.prod(map(len, options)) > MAX_STATES:
        draw = random.Random(seed)
        drawn = (tuple(draw.choice(choices) for choices in options) for _ in range(MAX_STATES))
        chosen = itertools.chain(
            [tuple(choices[0] for choices in options), tuple(choices[-1] for choices in options)], drawn
        )
    for choice in chosen:
        survived = {number: chance for (number, _), chance in zip(uncertain, choice, strict=True)}
        yield dict(_walk(folders, files, survived, ROOT, ""))


def _within_reach(folders: dict[int, _Folder], folder: int) -> set[int]:
    """Numbers that some state has a name for."""
    found = {folder}
    for names in (folders[folder].safe, *folders[folder].later):
        for number in names.values():
            if number is not None:
                found |= _within_reach(folders, number) if number in folders else {number}
    return found


def _walk(
    folders: dict[int, _Folder], files: dict[int, _File], survived: dict[int, Any], folder: int, path: str
) -> Iterator[tuple[str, bytes | None]]:
    names = folders[folder].after(survived[folder])
    for name, number in sorted(names.items()):
        place = os.path.join(path, name)
        if number in files:
            yield place, survived[number]
        else:
            yield place, None
            yield from _walk(folders, files, survived, number, place)


# ---- what must hold


class Lost(AssertionError):
    """What a crash has destroyed."""


def require(condition: object, what: str) -> None:
    """Says what is lost unless the condition holds."""
    if not condition:
        raise Lost(what)


class Survival:
    """Checks what crashes leave.

    Args:
        recorder: with what happened.
        check: raises :class:`Lost` where something is missing from a folder, given the marks.
    """

    def __init__(self, recorder: Recorder, check: Callable[[Path, dict[str, Any]], None]):
        self.events = recorder.events
        self.check = check
        # Hundreds of small folders: in memory where there is a place for that.
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self._folder = tempfile.TemporaryDirectory(dir=memory)
        self._fine: set[Any] = set()  # states that were checked before

    def losses(self, unsynced: int | None = None) -> Iterator[str]:
        """What is lost in which states, where one sync, if any, does nothing."""
        for crash in crashes(self.events, unsynced):
            if crash.key in self._fine:
                continue
            place = Path(self._folder.name) / "state"
            crash.put(place)
            try:
                with mock.patch("os.fsync"):  # what a check itself writes need not last
                    self.check(place, crash.marks)
                self._fine.add(crash.key)
            except Lost as lost:
                last = self.events[crash.place - 1]
                yield f"{lost}, by a crash after {last.kind} {last.path}; left: {sorted(crash.tree)}"

    def is_certain(self) -> bool:
        """Whether every crash is survived; the first loss is shown as the failure."""
        for loss in self.losses():
            raise Lost(loss)
        return True

    def superfluous(self) -> list[str]:
        """Paths of the syncs without which nothing is lost."""
        syncs = [place for place, event in enumerate(self.events) if event.kind == "sync"]
        return [self.events[sync].path for sync in syncs if next(self.losses(sync), None) is None]
