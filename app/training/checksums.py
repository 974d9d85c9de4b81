"""Checksums of tensors that nothing may change between two moments, reckoned and compared on their device."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

#: tensors of fewer bytes are added up together: each kernel takes longer to launch than to read them
ALONE_BYTES = {"cpu": 1 << 16, "cuda": 1 << 23}
#: bytes that are put together for one kernel; they are there twice for that moment
GROUP_BYTES = 1 << 24
MAX_NAMED = 3


class Place(NamedTuple):
    """Where a tensor is found; the tensor itself may be exchanged.

    Attributes:
        kind: what it is, for a message, such as ``weights``.
        name: its name among these.
        owner: mapping that holds it.
        key: under which.
    """

    kind: str
    name: str
    owner: Mapping[Any, Any]
    key: Any

    @property
    def tensor(self) -> Tensor:
        found = self.owner[self.key]
        assert isinstance(found, Tensor)
        return found.detach()


class Checksums:
    """Wrap-around sums over the 32-bit words of tensors, one for each group of them.

    A flipped bit moves such a sum by plus or minus a power of two below 2^32, and so is always seen; of several, those
    that cancel are not. Nothing is read back to the host before :meth:`findings`.

    Args:
        places: the tensors, all on one device.
    """

    def __init__(self, places: Iterable[Place]):
        self._groups = _grouped(places)
        device = self._groups[0][0].tensor.device if self._groups else torch.device("cpu")
        self._noted = torch.zeros(len(self._groups), dtype=torch.int32, device=device)
        self._difference = torch.zeros_like(self._noted)
        self._first = torch.zeros((), dtype=torch.int64, device=device)

    def note(self) -> None:
        """Takes the tensors as they now are for what they have to be."""
        if self._groups:
            self._noted.copy_(self._sums())

    def compare(self, step: int | Tensor) -> None:
        """Compares the tensors with what was noted; the first difference stays.

        Args:
            step: number of the step about to be made, counted from 1.
        """
        if not self._groups:
            return
        difference = self._sums() - self._noted
        is_first = (self._first == 0) & (difference != 0).any()
        self._difference.copy_(torch.where(is_first, difference, self._difference))
        self._first.copy_(torch.where(is_first, step, self._first))

    @property
    def is_broken(self) -> Tensor:
        """``()`` bool: whether there has been a difference."""
        return self._first != 0

    def tensors(self) -> list[Tensor]:
        """What :meth:`note` and :meth:`compare` move, always in the same memory."""
        return [self._noted, self._difference, self._first]

    def findings(self) -> tuple[int, list[str]]:
        """The step before whose update something differed, and what; 0 and nothing where nothing did."""
        step, *differences = torch.cat([self._first[None], self._difference.long()]).tolist()
        if not step:
            return 0, []
        return step, [
            f"{_named(group)} changed in memory ({_size(difference)})"
            for group, difference in zip(self._groups, differences, strict=True)
            if difference
        ]

    def _sums(self) -> Tensor:
        sums = []
        for group in self._groups:
            words = [piece for place in group for piece in _words(place.tensor)]
            sums.append((words[0] if len(words) == 1 else torch.cat(words)).sum(dtype=torch.int32))
        return torch.stack(sums)


def _grouped(places: Iterable[Place]) -> list[list[Place]]:
    """Tensors in the order given; small ones of a kind that follow one another are together."""
    groups: list[list[Place]] = []
    room = 0
    for place in places:
        tensor = place.tensor
        n_bytes = tensor.numel() * tensor.element_size()
        if not n_bytes:
            continue
        is_alone = n_bytes >= ALONE_BYTES.get(tensor.device.type, 1 << 20)
        if is_alone or n_bytes > room or groups[-1][0].kind != place.kind:
            groups.append([])
            room = 0 if is_alone else GROUP_BYTES
        groups[-1].append(place)
        room -= n_bytes
    return groups


def _words(tensor: Tensor) -> Sequence[Tensor]:
    """All bytes of a tensor as 32-bit words; those that are too few for one, one by one."""
    flat = tensor.reshape(-1)
    if flat.element_size() % 4 == 0:
        return [flat.view(torch.int32)]
    raw = flat.view(torch.uint8)
    whole = len(raw) - len(raw) % 4
    return [raw[:whole].view(torch.int32), raw[whole:].to(torch.int32)]


def _named(group: Sequence[Place]) -> str:
    names = [place.name for place in group]
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{group[0].kind}: {'one of ' if len(names) > 1 else ''}{', '.join(names[:MAX_NAMED])}{more}"


def _size(difference: int) -> str:
    """What a difference of sums says of the words that made it."""
    for value in (difference % (1 << 32), -difference % (1 << 32)):
        if value & (value - 1) == 0:
            return f"by one bit, number {value.bit_length() - 1} of a 32-bit word, if by no more than one"
    return "by several bits"
