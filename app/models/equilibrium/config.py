"""What an Equilibrium network is made of."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

from app import options
from app.models.equilibrium.branches import WANTED_DIVERGENCE
from app.models.equilibrium.budget import BudgetOrder
from app.models.equilibrium.routing import Quantile, Soft
from app.models.equilibrium.signal import Statistics
from app.options import (
    Given,
    Needs,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    UnitInterval,
    Within,
)

N_ROUTES = 4
RAW_THRESHOLDS = (0.75, 1.0, 1.35)
# Quantiles of a standard normal deviation at the target fractions, and a range that holds nearly all of it.
STANDARDIZED_THRESHOLDS = (0.126, 0.842, 1.645)
STANDARDIZED_RANGE = (-8.0, 8.0)
RAW_RANGE = (0.0, 4.0)

Momentum = Annotated[float, Within("(0, 1]")]
AT_LEAST_0 = Within("[0, inf)")
DEEP = Needs(n_layers=Within("[2, inf)"))
#: of what compares branches
JUDGED = Needs(use_branches=True, n_branches=Within("[2, inf)"))
VERIFIED = Needs(use_branches=True, n_branches=Within("[2, inf)"), use_verifier=True)


@dataclass(frozen=True)
class EquilibriumConfig:
    """Architecture, routing and losses of an :class:`~app.models.equilibrium.EquilibriumLM`.

    Args:
        vocab_size: number of tokens that there are; taken from the data.
        block_size: longest context, in tokens; taken from the data.
        d_model: width of the residual stream.
        n_heads: attention heads per block; divides ``d_model``.
        n_layers: blocks.
        d_ff: inner width of the feed-forward networks.
        dropout: on the embedding, on attention weights and in the feed-forward networks.
        use_attention_residual: residuals attend over all earlier outputs.
        use_plastic: plastic tokens pass an adapter; otherwise they go forward.
        plastic_hidden: width inside the adapter.
        use_branches: branch tokens of the last layer get their logits from several heads.
        n_branches: number of those heads.
        use_verifier: a verifier weighs the heads; otherwise their mean is taken.
        warmup_steps: batches (optimizer steps with ``statistics: lagged``) that move the statistics before
            routing begins; with ``current`` the last of them is routed already.
        max_budget_per_token: most units of compute that a token may cost.
        total_budget_ratio: units per token that a row may cost on average.
        statistics: ``current`` folds a batch into the running statistics before it is scored, so that in training a
            token sees later ones; ``lagged`` scores with what was there before, and is causal.
        route_choice: who routes: the ``deviation``, or for controls a ``hash`` of the token, a ``random`` draw that is
            fixed for each position and layer, the ``position``, each with the target fractions as shares, or nobody:
            all go ``forward``.
        standardize: route on the deviation in units of its own mean and spread.
        soft: soft decision by distance to ``centres`` of intervals, or by ``ordinal`` sigmoids at the thresholds.
        shared_router: one router for all layers; otherwise one for each.
        enforce_budget: a row takes no more than its units; tokens that do not fit go forward.
        budget_order: who is served first: by ``deviation``, which compares a token with later ones, or by position
            (``causal``).
        reprocess_context: a backward token attends to the positions before it, not to itself alone.
        quantile: thresholds from a ``sort`` (exact for each batch; with ``lagged`` the mean over micro-batches and
            processes) or a ``histogram`` (at most one of 4096 bins off, of the global batch).
        capacity_factor: room per row and route, as a multiple of the route's target share of the row; tokens beyond go
            forward and are counted. By default there is room for all.
        activation_checkpointing: compute the blocks again in the backward pass in place of keeping their inner values;
            statistics move once all the same.
        signal_momentum: weight of a new batch in the running statistics.
        init_thresholds: three ascending thresholds before any batch; by default 0.75, 1 and 1.35, with ``standardize``
            0.126, 0.842 and 1.645, the quantiles of a standard normal deviation at the default target fractions.
        target_fractions: share of tokens per route (forward, branch, backward, plastic), normalised.
        threshold_momentum: weight of a new batch's quantiles in the thresholds.
        temperature: sharpness of the soft decision, per unit of deviation.
        offset_scale: how far learning may shift each threshold, in units of deviation; at 0 the offsets learn nothing.
        verifier_weights: of certainty, agreement and separation in a branch's score, see :class:`Verifier`.
        verifier_sharpness: factor on the score inside of the softmax over branches; at 0 all weigh the same.
        diversity_target: divergence of a pair of branches, in nats, below which they are pushed apart.
        diversity_weight: of that push in the loss.
        fraction_weight: in the loss, of the squared distance of the last layer's mean probabilities to the target
            fractions.
        plastic_rate: of a step of :meth:`PlasticAdapter.adapt`, as for the following.
        plastic_mask: share of tokens that it zeroes before it restores them.
        plastic_noise: standard deviation of what it adds to every token.
        plastic_penalty: weight of the squared distance to the trained weights.
        plastic_decay: share of that distance that is left after each batch.

    Raises:
        ValueError: naming every field outside its range.
    """

    vocab_size: PositiveInt
    block_size: PositiveInt = 512
    d_model: PositiveInt = 256
    n_heads: PositiveInt = 4
    n_layers: PositiveInt = 6
    d_ff: PositiveInt = 512
    dropout: Probability = 0.1
    use_attention_residual: bool = True
    use_plastic: bool = True
    plastic_hidden: Annotated[PositiveInt, Needs(use_plastic=True)] = 64
    use_branches: bool = True
    n_branches: Annotated[PositiveInt, Needs(use_branches=True)] = 2
    use_verifier: Annotated[bool, JUDGED] = True
    warmup_steps: NonNegativeInt = 50
    max_budget_per_token: PositiveInt = 4
    total_budget_ratio: PositiveFloat = 2.0
    statistics: Statistics = "current"
    route_choice: Literal["deviation", "hash", "random", "position", "forward"] = "deviation"
    standardize: bool = False
    soft: Soft = "centres"
    shared_router: Annotated[bool, DEEP] = True
    enforce_budget: bool = False
    budget_order: Annotated[BudgetOrder, Needs(enforce_budget=True)] = "deviation"
    reprocess_context: Annotated[bool, DEEP] = False
    quantile: Quantile = "sort"
    capacity_factor: PositiveFloat | None = None
    activation_checkpointing: bool = False
    signal_momentum: Momentum = 0.1
    init_thresholds: tuple[float, float, float] | None = None
    target_fractions: Annotated[tuple[float, float, float, float], AT_LEAST_0] = (0.55, 0.25, 0.15, 0.05)
    threshold_momentum: Momentum = 0.2
    temperature: PositiveFloat = 8.0
    offset_scale: NonNegativeFloat = 0.2
    verifier_weights: Annotated[tuple[float, float, float], AT_LEAST_0, VERIFIED] = (0.4, 0.4, 0.2)
    verifier_sharpness: Annotated[NonNegativeFloat, VERIFIED] = 4.0
    diversity_target: Annotated[float, Within(f"[0, {math.log(2)}]"), JUDGED] = WANTED_DIVERGENCE
    diversity_weight: Annotated[NonNegativeFloat, JUDGED] = 0.1
    fraction_weight: NonNegativeFloat = 0.01
    plastic_rate: Annotated[PositiveFloat, Needs(use_plastic=True)] = 1e-4
    plastic_mask: Annotated[UnitInterval, Needs(use_plastic=True)] = 0.15
    plastic_noise: Annotated[NonNegativeFloat, Needs(use_plastic=True)] = 0.05
    plastic_penalty: Annotated[NonNegativeFloat, Needs(use_plastic=True)] = 0.01
    plastic_decay: Annotated[UnitInterval, Needs(use_plastic=True)] = 0.99

    def __post_init__(self) -> None:
        options.check(type(self), vars(self))

    @property
    def first_thresholds(self) -> tuple[float, float, float]:
        """Thresholds before any batch."""
        usual = STANDARDIZED_THRESHOLDS if self.standardize else RAW_THRESHOLDS
        return usual if self.init_thresholds is None else self.init_thresholds

    @property
    def value_range(self) -> tuple[float, float]:
        """Where the deviations lie that a histogram counts."""
        return STANDARDIZED_RANGE if self.standardize else RAW_RANGE

    @staticmethod
    def conflicts(given: Given) -> Iterator[tuple[str, str]]:
        if given.d_model % given.n_heads:
            yield "n_heads", f"must divide d_model = {given.d_model}"
        if given.enforce_budget and given.total_budget_ratio < 1:
            yield (
                "total_budget_ratio",
                "must be at least 1 with enforce_budget, as every token costs one unit",
            )
        if given.init_thresholds is not None:
            bounded = (-math.inf, *given.init_thresholds, math.inf)
            if len(bounded) != N_ROUTES + 1 or not all(a < b for a, b in pairwise(bounded)):
                yield "init_thresholds", "must be three ascending numbers"
        if len(given.target_fractions) != N_ROUTES or sum(given.target_fractions) == 0:
            yield "target_fractions", "must be four numbers, not all 0"
        if len(given.verifier_weights) != 3:
            yield "verifier_weights", "must be three numbers"

    @staticmethod
    def without_effect(given: Given) -> Iterator[tuple[str, str]]:
        if given.verifier_sharpness == 0:
            yield "verifier_weights", "with verifier_sharpness: 0"
        if given.diversity_weight == 0:
            yield "diversity_target", "with diversity_weight: 0"
        ratio = given.total_budget_ratio
        if ratio >= min(N_ROUTES, given.max_budget_per_token):
            yield "budget_order", f"with total_budget_ratio: {ratio}, which every row stays within"
        if given.max_budget_per_token > N_ROUTES:
            yield "max_budget_per_token", f"beyond {N_ROUTES}, the units of the dearest route"
        if given.route_choice == "forward":
            for name in ("capacity_factor", "reprocess_context", "enforce_budget"):
                yield name, "with route_choice: forward, where no token takes another route"
        if given.n_layers == 1 and not given.use_plastic and not given.use_branches:
            yield "capacity_factor", "without a route that does anything"
