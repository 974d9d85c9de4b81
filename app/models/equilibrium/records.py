"""What an Equilibrium layer reports about itself.

Shape suffixes: B batch, T sequence, D width, L layers, J pairs of branches.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from app.models.equilibrium.budget import TokenEnergyBudget
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
        capped: ``(B)`` bool, rows in which the total budget bound; None where nothing is limited by it.
        overflow: ``(3)`` int64 branch, backward and plastic tokens without room; None where there is room for all.
    """

    route: Tensor
    warming_up: Tensor
    deviation: Tensor
    score: Tensor
    probabilities: Tensor
    thresholds: Tensor
    capped: Tensor | None
    overflow: Tensor | None


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


def records_of(
    decisions: Sequence[Decision], divergence: Tensor, plastic_input: Tensor, budget: TokenEnergyBudget
) -> list[EquilibriumRecord]:
    """The records of all layers, made together: one by one they are hundreds of small operations of a step.

    Args:
        decisions: of each layer.
        divergence: of the branches, for the last layer.
        plastic_input: for the last layer, empty where nobody asks for it.
        budget: estimates units, and rows at the cap, where no decision limits them.
    """
    route = torch.stack([decided.route for decided in decisions])  # (L, B, T)
    probabilities = torch.stack([decided.probabilities for decided in decisions])  # (L, B, T, 4)
    deviation = torch.stack([decided.deviation for decided in decisions]).detach()
    fractions = (route.unsqueeze(-1) == torch.arange(len(ROUTES), device=route.device)).float().mean((1, 2))
    limited = [decided.capped for decided in decisions if decided.capped is not None]
    units = route + 1 if limited else budget(deviation, probabilities)
    capped = torch.stack(limited) if limited else budget.rows_at_cap(probabilities)
    nothing, none = divergence.new_zeros(0), route.new_zeros(len(ROUTES) - 1)
    last = len(decisions) - 1
    per_layer = zip(
        decisions, fractions, deviation.mean((1, 2)), units, units.float().mean((1, 2)), route,
        probabilities.mean((1, 2)), capped, deviation, strict=True,
    )  # fmt: skip
    return [
        EquilibriumRecord(
            route_fractions=of_routes,
            mean_deviation=mean_deviation,
            thresholds=decided.thresholds.detach(),
            mean_budget=mean_units,
            route=own_route,
            mean_probabilities=mean_probabilities,
            budget=own_units,
            capped=own_capped,
            overflow=none if decided.overflow is None else decided.overflow,
            warming_up=decided.warming_up,
            divergence=divergence if layer == last else nothing,
            plastic_input=plastic_input if layer == last else nothing,
            deviation=own_deviation,
        )
        for layer, (
            decided, of_routes, mean_deviation, own_units, mean_units, own_route, mean_probabilities, own_capped,
            own_deviation,
        ) in enumerate(per_layer)
    ]  # fmt: skip


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
