"""What an Equilibrium layer reports about itself.

Shape suffixes: B batch, T sequence, D width, L layers, J pairs of branches.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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
    shares: dict[str, Any] = {
        "axes": (layer, route),
        "kind": "share",
        "target": target_fractions,
        "in_force": ~_stacked(records, "warming_up").unsqueeze(-1),
    }
    return {
        "route_share": Measure(
            _stacked(records, "route_fractions"), **shares, meaning="tokens that take each route"
        ),
        "route_probability": Measure(
            _stacked(records, "mean_probabilities"),
            **shares,
            meaning="probability that the router gives each route, mean over tokens",
        ),
        "threshold": Measure(
            _stacked(records, "thresholds"),
            (layer, threshold),
            "threshold",
            meaning="deviations at which a token's route changes, from forward over branch and backward to plastic",
        ),
        "threshold_offset": Measure(
            offsets.detach(),
            (layer, threshold),
            "level",
            reduce="none",
            unit="deviation",
            meaning="what learning has added to the thresholds",
        ),
        "deviation": Measure(
            _stacked(records, "mean_deviation"),
            per_layer,
            "level",
            unit="deviation",
            meaning="distance of a token from the running mean, in running standard deviations; mean over tokens",
        ),
        "budget": Measure(
            _stacked(records, "mean_budget"),
            per_layer,
            "level",
            unit="units",
            meaning="energy of a token, mean over the tokens of a step",
        ),
        "tokens_at": Measure(
            at_level.sum((1, 2)),
            (layer, Axis("units", levels)),
            "count",
            reduce="sum",
            meaning="tokens that cost so many units of energy",
        ),
        "rows": Measure(
            rows,
            (layer, Axis("cap", ("below", "hit"))),
            "count",
            reduce="sum",
            meaning="sequences that stayed below their total of energy, and that hit it",
        ),
        "overflow": Measure(
            _stacked(records, "overflow"),
            (layer, Axis("overflow", ROUTES[1:])),
            "count",
            reduce="sum",
            meaning="tokens that went forward because their route had no room left",
        ),
    }


def token_measures_of(records: Sequence[EquilibriumRecord]) -> Mapping[str, TokenMeasure]:
    """Route, deviation and units of every token, ``(L, B, T)``."""
    return {
        "route": TokenMeasure(
            _stacked(records, "route"),
            ROUTES,
            meaning="by rising deviation: forward goes on, branch is predicted by several heads (last layer), "
            "backward passes the block before once more, plastic the adapter",
        ),
        "deviation": TokenMeasure(
            _stacked(records, "deviation"),
            unit="deviation",
            meaning="distance from the running mean, in running standard deviations; decides the route",
        ),
        "budget": TokenMeasure(
            _stacked(records, "budget"), unit="units", meaning="energy that the token may spend in this layer"
        ),
    }


def _stacked(records: Sequence[EquilibriumRecord], name: str) -> Tensor:
    return torch.stack([getattr(record, name) for record in records]).detach()
