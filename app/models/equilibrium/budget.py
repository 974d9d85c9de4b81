"""How much compute a token may cost, as an estimate or as a limit that holds.

Shape suffixes: B batch, T sequence.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BudgetOrder = Literal["deviation", "causal"]
MOST_EXTRA_UNITS = 3  # of the dearest route, beyond the one unit that every token pays


class TokenEnergyBudget(nn.Module):
    """Units of compute per token, as the soft routes ask for them and a total per row allows.

    The cost of a token is Σ k·p_k over the routes k = 1 .. 4; where a row's sum exceeds ⌊T·ratio⌋, all its
    costs are scaled down alike.

    Args:
        max_budget_per_token: most units of one token, ≥ 1.
        total_budget_ratio: units per token that a row may cost on average, > 0.
    """

    def __init__(self, max_budget_per_token: int = 4, total_budget_ratio: float = 2.0):
        super().__init__()
        self.max_budget_per_token = max_budget_per_token
        self.total_budget_ratio = total_budget_ratio

    def total(self, n_tokens: int) -> int:
        """⌊T·ratio⌋, the units of a row of so many tokens."""
        return math.floor(n_tokens * self.total_budget_ratio)

    def forward(self, deviation: Tensor, probabilities: Tensor) -> Tensor:
        """Estimate the units.

        Args:
            deviation: ``(B, T)``; who is first in line matters to :meth:`granted` only.
            probabilities: ``(B, T, 4)``.

        Returns:
            ``(B, T)`` int64 in 1 .. ``max_budget_per_token``.
        """
        cost = self._cost(probabilities)
        scale = (self.total(cost.shape[-1]) / (cost.sum(-1, keepdim=True) + 1e-8)).clamp(max=1.0)
        return (cost * scale).clamp(1, self.max_budget_per_token).round().long()

    def rows_at_cap(self, probabilities: Tensor) -> Tensor:
        """``(B)`` bool, whether a row's costs were scaled down."""
        cost = self._cost(probabilities)
        return cost.sum(-1) + 1e-8 > self.total(cost.shape[-1])

    @staticmethod
    def _cost(probabilities: Tensor) -> Tensor:
        units = torch.arange(1, probabilities.shape[-1] + 1, device=probabilities.device)
        return (probabilities.detach() * units).sum(-1)

    def affordable(self, route: Tensor) -> Tensor:
        """The routes that one token may cost, whatever the total; a dearer one goes forward. ``(B, T)`` int64."""
        return torch.where(route < self.max_budget_per_token, route, 0)

    def granted(self, route: Tensor, deviation: Tensor, order: BudgetOrder = "deviation") -> Tensor:
        """The routes that the budget has room for; a token that does not fit goes forward.

        Route k costs k + 1 units, of which every token pays the first in any case.

        Args:
            route: ``(B, T)`` int64, not descending in the deviation.
            deviation: ``(B, T)``.
            order: ``deviation``, largest first, equal ones in order of position; ``causal``, by position, where
                the units spent up to token t stay within ⌊(t+1)·ratio⌋.

        Returns:
            ``(B, T)`` int64, each entry that of ``route`` or 0.
        """
        wanted = self.affordable(route)
        if order == "causal":
            return wanted * self._fits_causally(wanted)
        return wanted * self._fits_by_deviation(wanted, deviation)

    def _fits_by_deviation(self, wanted: Tensor, deviation: Tensor) -> Tensor:
        """Greedy scan in descending deviation.

        The tokens of a route stand together in that order, so that of each route the first so many fit as there
        is room left for.
        """
        order = deviation.sort(dim=-1, descending=True, stable=True).indices
        queue = wanted.gather(-1, order)
        left = torch.full_like(queue[:, :1], self.total(queue.shape[-1]) - queue.shape[-1])
        fits = queue == 0
        for units in range(MOST_EXTRA_UNITS, 0, -1):
            asks = queue == units
            fits = fits | (asks & (asks.cumsum(-1) * units <= left))
            left = left - units * torch.minimum(asks.sum(-1, keepdim=True), left // units)
        return torch.zeros_like(fits).scatter(-1, order, fits)

    def _fits_causally(self, wanted: Tensor) -> Tensor:
        """Scan by position, in a number of operations that grows with log T.

        The units left over before a token decide whether it fits, and what is left after it. Of a stretch of n
        tokens, what goes in determines what comes out; from 3n on, everything fits and the function is linear, so
        that a table of 3n + 1 entries holds it. Tables of neighbouring stretches are composed up to the whole
        row, then what goes into each stretch is handed down.
        """
        T = wanted.shape[-1]
        size = 1 << max(T - 1, 0).bit_length()
        position = torch.arange(T + 1, device=wanted.device, dtype=torch.float64)
        gain = (
            position * self.total_budget_ratio
        ).floor().long().diff() - 1  # units that token t brings for extras
        gain, asks = F.pad(gain, (0, size - T)), F.pad(wanted, (0, size - T))  # (size), (B, size)
        left = torch.arange(MOST_EXTRA_UNITS + 1, device=wanted.device) + gain[:, None]  # (size, 4)
        tables = [torch.where(left >= asks[..., None], left - asks[..., None], left)]  # (B, size, 4)
        while tables[-1].shape[1] > 2:
            first, second = tables[-1][:, 0::2], tables[-1][:, 1::2]
            entry = torch.arange(2 * first.shape[-1] - 1, device=wanted.device).expand(*first.shape[:2], -1)
            tables.append(_look_up(second, _look_up(first, entry)))
        before = torch.zeros_like(asks[:, :1])  # nothing is left over before the row
        for table in reversed(tables) if size > 1 else ():
            between = _look_up(table[:, 0::2], before[..., None])[..., 0]
            before = torch.stack([before, between], -1).flatten(1)
        return (before + gain >= asks)[:, :T]


def _look_up(table: Tensor, entry: Tensor) -> Tensor:
    """Entries of tables ``(B, n, m + 1)`` that go on with slope 1 beyond m."""
    last = table.shape[-1] - 1
    return table.gather(-1, entry.clamp(max=last)) + (entry - last).clamp(min=0)
