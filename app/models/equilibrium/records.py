"""What an Equilibrium layer reports about itself.

Shape suffixes: B batch, T sequence, D width, L layers, J pairs of branches.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from app.models.equilibrium.routing import ROUTES
from app.records import Axis, Measure, TokenMeasure

THRESHOLDS = ("theta1", "theta2", "theta3")


class Decision(NamedTuple):
    """What a layer decided for its tokens, and what decided it.

    Attributes:
        route: ``(B, T)`` int64 as taken.
        warming_up: ``()`` bool.
        deviation: ``(B, T)``.
        score: ``(B, T)``, what the router read.
        probabilities: ``(B, T, 4)``.
        thresholds: ``(3)``.
        budget: ``(B, T)`` int64 units.
        capped: ``(B)`` bool, rows in which the total budget bound.
        overflow: ``(3)`` int64 branch, backward and plastic tokens without room.
    """

    route: Tensor
    warming_up: Tensor
    deviation: Tensor
    score: Tensor
    probabilities: Tensor
    thresholds: Tensor
    budget: Tensor
    capped: Tensor
    overflow: Tensor


class EquilibriumRecord(NamedTuple):
    """One layer's routing of one batch.

    Attributes:
        route_fractions: ``(4)`` share of tokens per route, as taken.
        mean_deviation: ``()``, not standardised.
        thresholds: ``(3)`` that decided.
        mean_budget: ``()`` units per token.
        route: ``(B, T)`` int64 as taken: 0 forward, 1 branch, 2 backward, 3 plastic.
        mean_probabilities: ``(4)`` mean of the soft decision; the last layer's with its graph.
        budget: ``(B, T)`` int64 units, spent where the budget is enforced, estimated where it is not.
        capped: ``(B)`` bool, rows in which the total budget bound.
        overflow: ``(3)`` int64 branch, backward and plastic tokens that went forward for want of room.
        warming_up: ``()`` bool.
        divergence: ``(J)`` of the branch heads, with its graph; of the last layer, empty in others.
        plastic_input: ``(B, T, D)`` that the adapter read or would have; of the last layer in evaluation, else
            empty.
        deviation: ``(B, T)``, of which ``mean_deviation`` is the mean.
    """

    route_fractions: Tensor
    mean_deviation: Tensor
    thresholds: Tensor
    mean_budget: Tensor
    route: Tensor
    mean_probabilities: Tensor
    budget: Tensor
    capped: Tensor
    overflow: Tensor
    warming_up: Tensor
    divergence: Tensor
    plastic_input: Tensor
    deviation: Tensor


def tokens_per_route(route: Tensor) -> Tensor:
    """``(3)`` int64 numbers of branch, backward and plastic tokens in ``(B, T)``."""
    return torch.stack([(route == number).sum() for number in range(1, len(ROUTES))])


def record_of(decided: Decision, divergence: Tensor, plastic_input: Tensor) -> EquilibriumRecord:
    """A layer's record; ``divergence`` and ``plastic_input`` as described there."""
    numbers = torch.arange(len(ROUTES), device=decided.route.device)
    return EquilibriumRecord(
        route_fractions=(decided.route.unsqueeze(-1) == numbers).float().mean((0, 1)),
        mean_deviation=decided.deviation.detach().mean(),
        thresholds=decided.thresholds.detach(),
        mean_budget=decided.budget.float().mean(),
        route=decided.route,
        mean_probabilities=decided.probabilities.mean((0, 1)),
        budget=decided.budget,
        capped=decided.capped,
        overflow=decided.overflow,
        warming_up=decided.warming_up,
        divergence=divergence,
        plastic_input=plastic_input,
        deviation=decided.deviation.detach(),
    )


def measures_of(
    records: Sequence[EquilibriumRecord], offsets: Tensor, target_fractions: Tensor, max_budget: int
) -> Mapping[str, Measure]:
    """The measures of all layers.

    Args:
        records: of each layer.
        offsets: ``(L, 3)`` by which learning has shifted the thresholds.
        target_fractions: ``(4)``.
        max_budget: most units of a token.
    """
    layer, route = Axis("layer"), Axis("route", ROUTES)
    threshold = Axis("threshold", THRESHOLDS)
    levels = tuple(str(units) for units in range(1, max_budget + 1))
    budget = _stacked(records, "budget")  # (L, B, T)
    at_level = budget.unsqueeze(-1) == torch.arange(1, max_budget + 1, device=budget.device)
    capped = _stacked(records, "capped")  # (L, B)
    rows = torch.stack([(~capped).sum(-1), capped.sum(-1)], -1)
    per_layer = (layer,)
    return {
        "route_share": Measure(
            _stacked(records, "route_fractions"), (layer, route), "share", target=target_fractions
        ),
        "route_probability": Measure(
            _stacked(records, "mean_probabilities"), (layer, route), "share", target=target_fractions
        ),
        "threshold": Measure(_stacked(records, "thresholds"), (layer, threshold), "threshold"),
        "threshold_offset": Measure(
            offsets.detach(), (layer, threshold), "level", reduce="none", unit="deviation"
        ),
        "deviation": Measure(_stacked(records, "mean_deviation"), per_layer, "level", unit="deviation"),
        "budget": Measure(_stacked(records, "mean_budget"), per_layer, "level", unit="units"),
        "tokens_at": Measure(at_level.sum((1, 2)), (layer, Axis("units", levels)), "count", reduce="sum"),
        "rows": Measure(rows, (layer, Axis("cap", ("below", "hit"))), "count", reduce="sum"),
        "overflow": Measure(
            _stacked(records, "overflow"), (layer, Axis("overflow", ROUTES[1:])), "count", reduce="sum"
        ),
    }


def token_measures_of(records: Sequence[EquilibriumRecord]) -> Mapping[str, TokenMeasure]:
    """Route, deviation and units of every token, ``(L, B, T)``."""
    return {
        "route": TokenMeasure(_stacked(records, "route"), ROUTES),
        "deviation": TokenMeasure(_stacked(records, "deviation"), unit="deviation"),
        "budget": TokenMeasure(_stacked(records, "budget"), unit="units"),
    }


def _stacked(records: Sequence[EquilibriumRecord], name: str) -> Tensor:
    return torch.stack([getattr(record, name) for record in records]).detach()
