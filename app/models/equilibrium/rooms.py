"""Buffers of a fixed size for the tokens of one route.

Shape suffixes: B batch, T sequence, C room per row.
"""

from collections.abc import Callable

import torch
from torch import Tensor


class Room:
    """The first C tokens of a route in each row; where there are fewer, others fill up and stay as they are.

    Shapes depend on C alone, never on how many tokens took the route, so that nothing has to be read back and
    every rank's parameters take part. No position appears twice.

    Args:
        taken: ``(B, T)`` bool, who takes the route.
        size: C, 0 .. T.
    """

    def __init__(self, taken: Tensor, size: int):
        # Descending and stable: takers first, in order of position.
        self.position = taken.byte().sort(dim=-1, descending=True, stable=True).indices[:, :size]  # (B, C)
        self.is_taken = taken.gather(-1, self.position)  # (B, C)

    def gather(self, x: Tensor) -> Tensor:
        """``(B, T, …) → (B, C, …)``."""
        return x.gather(1, self._index(x))

    def put(self, x: Tensor, new: Tensor) -> Tensor:
        """A copy of ``(B, T, …)`` in which the takers are replaced by those of ``(B, C, …)``."""
        index = self._index(x)
        is_taken = self.is_taken.reshape(*self.is_taken.shape, *(1,) * (x.dim() - 2))
        return x.scatter(1, index, torch.where(is_taken, new.to(x.dtype), x.gather(1, index)))

    def _index(self, x: Tensor) -> Tensor:
        position = self.position.reshape(*self.position.shape, *(1,) * (x.dim() - 2))
        return position.expand(-1, -1, *x.shape[2:])


class Everywhere:
    """Room for every token without moving any: all are processed, the takers' results are kept.

    Args:
        taken: ``(B, T)`` bool, who takes the route.
    """

    def __init__(self, taken: Tensor):
        self.position = torch.arange(taken.shape[1], device=taken.device)[None]  # (1, T)
        self._taken = taken

    def gather(self, x: Tensor) -> Tensor:
        """Everything as it stands."""
        return x

    def put(self, x: Tensor, new: Tensor) -> Tensor:
        """``(B, T, D)`` with the takers replaced by those of ``new``."""
        return torch.where(self._taken.unsqueeze(-1), new.to(x.dtype), x)


def replaced(
    x: Tensor, taken: Tensor, size: int | None, process: Callable[["Room | Everywhere"], Tensor]
) -> Tensor:
    """``x (B, T, D)`` in which those who take a route are as ``process`` makes them.

    Args:
        x: ``(B, T, D)``.
        taken: ``(B, T)`` bool.
        size: room per row, at least as much as there are takers; None processes every token.
        process: from the room to what its tokens become.
    """
    room = Everywhere(taken) if size is None else Room(taken, size)
    return room.put(x, process(room))
