"""Buffers of a fixed size for the tokens of one route.

Shape suffixes: B batch, T sequence, C room per row.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from app.models.equilibrium.budget import TokenEnergyBudget


class CapacityBuffer:
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
    """CapacityBuffer for every token without moving any: all are processed, the takers' results are kept.

    Args:
        taken: ``(B, T)`` bool, who takes the route.
    """

    def __init__(self, taken: Tensor):
        self.position = torch.arange(taken.shape[1], device=taken.device)[None]  # (1, T)
        self._taken = taken

    def gather(self, x: Tensor) -> Tensor:
        return x

    def put(self, x: Tensor, new: Tensor) -> Tensor:
        """``(B, T, D)`` with the takers replaced by those of ``new``."""
        return torch.where(self._taken.unsqueeze(-1), new.to(x.dtype), x)


def replaced(
    x: Tensor, taken: Tensor, size: int | None, process: Callable[["CapacityBuffer | Everywhere"], Tensor]
) -> Tensor:
    """``x (B, T, D)`` in which those who take a route are as ``process`` makes them.

    Args:
        x: ``(B, T, D)``.
        taken: ``(B, T)`` bool.
        size: room per row, at least as much as there are takers; None processes every token.
        process: from the room to what its tokens become.
    """
    room = Everywhere(taken) if size is None else CapacityBuffer(taken, size)
    return room.put(x, process(room))


class RouteCapacity:
    """How many tokens of a row can take each route.

    Args:
        fractions: target share of each route.
        capacity_factor: room as a multiple of that share of the row; None has room for all.
        budget: what limits the units of a row; None where nothing does.
    """

    def __init__(
        self, fractions: Sequence[float], capacity_factor: float | None, budget: TokenEnergyBudget | None
    ):
        self.fractions = fractions
        self.capacity_factor = capacity_factor
        self.budget = budget

    def size(self, route: int, n_tokens: int) -> int | None:
        """Most tokens of a row that can take a route; None where that is all of them."""
        sizes = []
        if self.budget is not None:
            sizes.append((self.budget.total(n_tokens) - n_tokens) // route)
        capacity = self._capacity(route, n_tokens)
        if capacity is not None:
            sizes.append(capacity)
        return min(sizes) if sizes and min(sizes) < n_tokens else None

    @property
    def drops(self) -> bool:
        """Whether a route may have less room than tokens want."""
        return self.capacity_factor is not None

    def within_capacity(self, route: Tensor, at_work: Sequence[int]) -> Tensor:
        """Routes ``(B, T)`` in which whoever comes too late in its row for the room of its route goes forward, 0.

        Args:
            route: ``(B, T)`` int64.
            at_work: routes that do something; the others need no room.
        """
        for number in at_work:
            capacity = self._capacity(number, route.shape[1])
            if capacity is not None:
                taken = route == number
                route = torch.where(taken & (taken.cumsum(-1) > capacity), 0, route)
        return route

    def _capacity(self, route: int, n_tokens: int) -> int | None:
        if self.capacity_factor is None:
            return None
        return min(n_tokens, math.ceil(self.capacity_factor * self.fractions[route] * n_tokens))
