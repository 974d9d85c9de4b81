"""The Equilibrium language model.

Shape suffixes: B batch, T sequence, D width, V vocabulary, L layers, J pairs of branches.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from app.models.equilibrium.arguments import problems_of
from app.models.equilibrium.block import EquilibriumBlock, KeysValues
from app.models.equilibrium.branches import BranchHeads, Verifier, divergence, diversity_loss
from app.models.equilibrium.budget import BudgetOrder, TokenEnergyBudget
from app.models.equilibrium.plastic import PlasticAdapter
from app.models.equilibrium.records import (
    Decision,
    measures_of,
    record_of,
    token_measures_of,
    tokens_per_route,
)
from app.models.equilibrium.rooms import Everywhere, Room, replaced
from app.models.equilibrium.routing import BACKWARD, BRANCH, FORWARD, PLASTIC, RoutingDecision
from app.models.equilibrium.signal import EquilibriumSignal
from app.models.equilibrium.statistics import StepStatistics, is_recomputing, moments
from app.models.language_model import LanguageModel, next_token_loss
from app.records import LanguageModelOutput, Measure, TokenMeasure

INITIAL_STD = 0.02  # GPT-2's
DIVERSITY_WEIGHT = 0.1
ROUTE_WEIGHT = 0.01
ROUTING_RATE = 0.1
N_ROUTES = 4
# Quantiles of a standard normal deviation at the target fractions, and a range that holds nearly all of it.
STANDARDIZED_THRESHOLDS = (0.126, 0.842, 1.645)
STANDARDIZED_RANGE = (-8.0, 8.0)
RAW_RANGE = (0.0, 4.0)


class EquilibriumLM(LanguageModel):
    """Transformer whose tokens are routed after each block by their deviation from running statistics.

    A token goes forward, gets its logits from several heads (branch, last layer only), is processed again by the
    block before (backward), or passes an adapter (plastic). The defaults are the original form; every option
    away from them changes what is computed.

    Args:
        vocab_size: V.
        block_size: longest context.
        d_model: D.
        n_heads: attention heads; divides D.
        n_layers: L.
        d_ff: inner width of the feed-forward networks.
        dropout: probability, on the embedding, on attention weights and in the feed-forward networks.
        use_attention_residual: whether residuals attend over all earlier outputs.
        use_plastic: whether plastic tokens pass the adapter; otherwise they go forward.
        plastic_hidden: width inside the adapter.
        use_branches: whether branch tokens of the last layer get their logits from the branch heads.
        n_branches: number of those heads.
        use_verifier: whether a verifier weighs the heads; otherwise their mean is taken.
        warmup_steps: batches (optimizer steps with ``lagged``) that move the statistics before routing begins;
            with ``current`` the last of them is routed already.
        max_budget_per_token: most units that a token may cost.
        total_budget_ratio: units per token that a row may cost on average.
        statistics: ``current`` or ``lagged``, see :class:`EquilibriumSignal` and :class:`RoutingDecision`.
            ``current`` lets a token see later ones of its batch in training.
        standardize: route on the deviation in units of its own mean and spread.
        soft: ``centres`` or ``ordinal``, see :class:`RoutingDecision`.
        shared_router: one router for all layers; otherwise one for each.
        enforce_budget: let a row take no more than its units; tokens that do not fit go forward.
        budget_order: who is served first: ``deviation``, which compares a token with later ones, or ``causal``.
        reprocess_context: let a backward token attend to the positions before it, not to itself alone.
        quantile: ``sort`` or ``histogram``, see :class:`RoutingDecision`.
        capacity_factor: room per row and route, as a multiple of the route's target share of the row; tokens
            beyond go forward and are counted. None has room for all.
        activation_checkpointing: compute the blocks again in the backward pass in place of keeping their inner
            values; statistics move once all the same.

    Raises:
        ValueError: an argument is out of range; the message names every such argument.
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int = 512,
        d_model: int = 256,
        n_heads: int = 4,
        n_layers: int = 6,
        d_ff: int = 512,
        dropout: float = 0.1,
        use_attention_residual: bool = True,
        use_plastic: bool = True,
        plastic_hidden: int = 64,
        use_branches: bool = True,
        n_branches: int = 2,
        use_verifier: bool = True,
        warmup_steps: int = 50,
        max_budget_per_token: int = 4,
        total_budget_ratio: float = 2.0,
        statistics: Literal["current", "lagged"] = "current",
        standardize: bool = False,
        soft: Literal["centres", "ordinal"] = "centres",
        shared_router: bool = True,
        enforce_budget: bool = False,
        budget_order: Literal["deviation", "causal"] = "deviation",
        reprocess_context: bool = False,
        quantile: Literal["sort", "histogram"] = "sort",
        capacity_factor: float | None = None,
        activation_checkpointing: bool = False,
    ):
        super().__init__()
        problems = problems_of({name: value for name, value in locals().items() if name != "self"})
        if problems:
            raise ValueError("\n".join(problems))
        self.max_context = block_size
        self.dropout = dropout
        self.enforce_budget = enforce_budget
        self.budget_order: BudgetOrder = budget_order
        self.reprocess_context = reprocess_context
        self.capacity_factor = capacity_factor
        self.activation_checkpointing = activation_checkpointing
        self.tok_emb = nn.Embedding(vocab_size, d_model)
        self.pos_emb = nn.Embedding(block_size, d_model)
        self.blocks = nn.ModuleList(
            EquilibriumBlock(d_model, n_heads, d_ff, dropout, use_attention_residual) for _ in range(n_layers)
        )
        self.signals = nn.ModuleList(
            EquilibriumSignal(
                d_model, warmup_steps=warmup_steps, statistics=statistics, standardize=standardize
            )
            for _ in range(n_layers)
        )
        value_range = STANDARDIZED_RANGE if standardize else RAW_RANGE
        routing: dict[str, Any] = {
            "statistics": statistics,
            "soft": soft,
            "quantile": quantile,
            "value_range": value_range,
        }
        if standardize:
            routing["init_thresholds"] = STANDARDIZED_THRESHOLDS
        n_routers = 1 if shared_router else n_layers
        self.routers = nn.ModuleList(RoutingDecision(**routing) for _ in range(n_routers))
        self.step_statistics = (
            StepStatistics(n_layers, d_model, n_routers, N_ROUTES - 1, quantile == "histogram", value_range)
            if statistics == "lagged"
            else None
        )
        self.budget = TokenEnergyBudget(max_budget_per_token, total_budget_ratio)
        self.plastic = PlasticAdapter(d_model, plastic_hidden) if use_plastic else None
        self.branches = BranchHeads(d_model, vocab_size, n_branches) if use_branches else None
        self.verifier = Verifier() if use_branches and use_verifier else None
        self.norm_f = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocab_size, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INITIAL_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    # -- forward ----------------------------------------------------------------------------------------

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> LanguageModelOutput:
        """See :meth:`LanguageModel.forward`; ``routing`` holds an ``EquilibriumRecord`` per layer.

        Raises:
            ValueError: T is beyond ``block_size``.
        """
        if self.max_context is not None and self.max_context < idx.shape[1]:
            raise ValueError(
                f"a context of {idx.shape[1]} tokens: this network reads at most block_size = {self.max_context}"
            )
        position = torch.arange(idx.shape[1], device=idx.device)
        x = F.dropout(self.tok_emb(idx) + self.pos_emb(position), self.dropout, self.training)  # (B, T, D)
        history = [x]
        firsts: list[KeysValues] = []
        decisions: list[Decision] = []
        for layer, block in enumerate(self.equilibrium_blocks):
            out, first = self._call(block, x, *history)
            decided = self._decide(layer, out)
            x = self._routed(layer, out, decided.route, history, firsts)
            history.append(x)
            firsts.append(first)
            decisions.append(decided)
        if self.step_statistics is not None and self.training and not is_recomputing():
            self.step_statistics.add_deviations(
                [decided.deviation.detach() for decided in decisions],
                [signal.usual_deviation for signal in self.equilibrium_signals],
                [decided.score.detach() for decided in decisions],
                self._router(0).target_cdf,
            )
        logits, divergences = self._logits(self.norm_f(x), decisions[-1].route)
        records = [
            record_of(
                decided,
                divergences if layer == len(decisions) - 1 else logits.new_zeros(0),
                out.detach() if self._keeps_plastic_input(layer) else logits.new_zeros(0),
            )
            for layer, decided in enumerate(decisions)
        ]
        output = LanguageModelOutput(
            logits, next_token_loss(logits, targets), logits.new_zeros(()), list(records)
        )
        return output._replace(aux_loss=self.auxiliary_losses(self.auxiliary_means(output)))

    def _call(self, function: Any, *inputs: Any) -> Any:
        if self.activation_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(function, *inputs, use_reentrant=False)
        return function(*inputs)

    def _decide(self, layer: int, out: Tensor) -> Decision:
        signal = self.equilibrium_signals[layer]
        # No loss reads the routing of an earlier layer, so that nothing is lost where its graph ends.
        source = out if layer == len(self.blocks) - 1 else out.detach()
        deviation, warming_up = signal(source)
        if self.step_statistics is not None and self.training and not is_recomputing():
            self.step_statistics.add_outputs(layer, out.detach(), signal.running_mean)
        score = signal.standardized(deviation)
        route, probabilities, thresholds = self._router(layer)(score)
        route = torch.where(warming_up, FORWARD, route)
        if self.enforce_budget:
            affordable = self.budget.affordable(route)
            route = self.budget.granted(affordable, deviation.detach(), self.budget_order)
            capped = (route != affordable).any(-1)
        else:
            capped = self.budget.rows_at_cap(probabilities)
        asked, route = route, self._within_capacity(layer, route)
        return Decision(
            route=route,
            warming_up=warming_up,
            deviation=deviation,
            score=score,
            probabilities=probabilities,
            thresholds=thresholds,
            budget=route + 1 if self.enforce_budget else self.budget(deviation, probabilities),
            capped=capped,
            overflow=tokens_per_route(asked) - tokens_per_route(route),
        )

    def _routed(
        self, layer: int, out: Tensor, route: Tensor, history: Sequence[Tensor], firsts: Sequence[KeysValues]
    ) -> Tensor:
        """The block's output with backward and plastic tokens replaced; ``out`` itself is not written to."""
        T = route.shape[1]
        x = out
        if layer > 0:
            earlier = self.equilibrium_blocks[layer - 1]
            first = firsts[layer - 1] if self.reprocess_context else None

            def again(room: Room | Everywhere) -> Tensor:
                seen = [room.gather(h) for h in history[:layer]]
                y: Tensor = self._call(earlier.again, room.gather(out), seen, room.position, first)
                return y

            x = replaced(x, route == BACKWARD, self._room(BACKWARD, T), again)
        if self.plastic is not None:
            adapter = self.plastic
            x = replaced(x, route == PLASTIC, self._room(PLASTIC, T), lambda room: adapter(room.gather(out)))
        return x

    def _logits(self, hidden: Tensor, route: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(B, T, V)``, and the divergence ``(J)`` of the pairs of branches."""
        logits = self.head(hidden)
        if self.branches is None:
            return logits, logits.new_zeros(0)
        branch_logits = self.branches.logits(hidden)  # (n, B, T, V): diversity is the mean over all tokens

        def mixed(room: Room | Everywhere) -> Tensor:
            own = torch.stack([room.gather(each) for each in branch_logits])
            mixture: Tensor = own.mean(0) if self.verifier is None else self.verifier(own).logits
            return mixture

        size = self._room(BRANCH, route.shape[1])
        return replaced(logits, route == BRANCH, size, mixed), divergence(branch_logits)

    # -- room -------------------------------------------------------------------------------------------

    def _room(self, route: int, n_tokens: int) -> int | None:
        """Most tokens of a row that can take a route; None where that is all of them."""
        sizes = []
        if self.enforce_budget:
            sizes.append((self.budget.total(n_tokens) - n_tokens) // route)
        capacity = self._capacity(route, n_tokens)
        if capacity is not None:
            sizes.append(capacity)
        return min(sizes) if sizes and min(sizes) < n_tokens else None

    def _capacity(self, route: int, n_tokens: int) -> int | None:
        if self.capacity_factor is None:
            return None
        target = self._router(0).fractions[route]
        return min(n_tokens, math.ceil(self.capacity_factor * target * n_tokens))

    def _within_capacity(self, layer: int, route: Tensor) -> Tensor:
        """Routes in which whoever comes too late in its row for the room of its route goes forward."""
        is_last = layer == len(self.blocks) - 1
        works = {
            BRANCH: is_last and self.branches is not None,
            BACKWARD: layer > 0,
            PLASTIC: self.plastic is not None,
        }
        for number, does_work in works.items():
            capacity = self._capacity(number, route.shape[1])
            if does_work and capacity is not None:
                taken = route == number
                route = torch.where(taken & (taken.cumsum(-1) > capacity), FORWARD, route)
        return route

    # -- losses and what moves --------------------------------------------------------------------------

    def auxiliary_means(self, output: LanguageModelOutput) -> Tensor:
        """Whether routing has begun, mean probabilities of every layer's routes, divergence of the branches.

        Only the last layer's probabilities count, but all take part: the routers of the other layers would
        otherwise stay without a gradient, which parallel training does not allow.

        Returns:
            ``(1 + 4L + J)``.
        """
        last = output.routing[-1]
        probabilities = [record.mean_probabilities for record in output.routing]
        warm = (~last.warming_up).to(last.mean_probabilities.dtype)
        return torch.cat([warm[None], *probabilities, last.divergence.to(warm.dtype)])

    def auxiliary_losses(self, means: Tensor) -> Tensor:
        """0.1 × diversity loss + 0.01 × mean squared distance to the target fractions, once routing has begun."""
        last_probabilities = means[1 + N_ROUTES * (len(self.blocks) - 1) :][:N_ROUTES]
        divergences = means[1 + N_ROUTES * len(self.blocks) :]
        distance = (last_probabilities - self._router(0).target_fractions).square().mean()
        weighted = DIVERSITY_WEIGHT * diversity_loss(divergences) + ROUTE_WEIGHT * distance
        return means[0].detach() * weighted

    def step_sums(self) -> list[Tensor]:
        """Sums, counts and quantiles of all layers, with ``lagged``."""
        return [] if self.step_statistics is None else self.step_statistics.sums_of_step()

    @torch.no_grad()
    def after_optimizer_step(self, step: int) -> None:
        """With ``lagged``, moves running means, variances and thresholds by the global batch of this step."""
        statistics = self.step_statistics
        if statistics is None:
            return
        # Fewer than two tokens have no variance; they move nothing.
        seen = statistics.count > 1
        means, variances = moments(statistics.sums, statistics.squares, statistics.count)
        deviation = moments(statistics.deviation_sums[0], statistics.deviation_sums[1], statistics.count)
        for layer, signal in enumerate(self.equilibrium_signals):
            signal.move((means[layer], variances[layer]), (deviation[0][layer], deviation[1][layer]), seen)
        quantiles = statistics.step_quantiles(self._router(0).target_cdf)
        for router, quantile in zip(self.routing_decisions, quantiles, strict=True):
            router.move(quantile, seen)

    def running_state(self) -> list[Tensor]:
        """Running statistics of every layer and running thresholds of every router."""
        statistics = [state for signal in self.equilibrium_signals for state in signal.running_state()]
        return statistics + [state for router in self.routing_decisions for state in router.running_state()]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """As ever, but with the parameters of signals and routers at a tenth of the rate."""
        slow = [p for owner in (*self.signals, *self.routers) for p in owner.parameters() if p.requires_grad]
        known = {id(p) for p in slow}
        groups = super().parameter_groups()
        for group in groups:
            group["params"] = [p for p in group["params"] if id(p) not in known]
        return [*groups, {"name": "routing", "params": slow, "decay": False, "rate": ROUTING_RATE}]

    def is_matrix(self, name: str, parameter: nn.Parameter) -> bool:
        """All but the branches' offsets, a stack of vectors."""
        return parameter.dim() >= 2 and not (self.branches is not None and parameter is self.branches.offsets)

    # -- what it is -------------------------------------------------------------------------------------

    @property
    def equilibrium_blocks(self) -> list[EquilibriumBlock]:
        """One per layer."""
        return [block for block in self.blocks if isinstance(block, EquilibriumBlock)]

    @property
    def equilibrium_signals(self) -> list[EquilibriumSignal]:
        """One per layer."""
        return [signal for signal in self.signals if isinstance(signal, EquilibriumSignal)]

    @property
    def routing_decisions(self) -> list[RoutingDecision]:
        """One for all layers, or one per layer."""
        return [router for router in self.routers if isinstance(router, RoutingDecision)]

    def _router(self, layer: int) -> RoutingDecision:
        return self.routing_decisions[layer if len(self.routers) > 1 else 0]

    def _keeps_plastic_input(self, layer: int) -> bool:
        return self.plastic is not None and not self.training and layer == len(self.blocks) - 1

    def flops_per_token(self, block_size: int) -> float:
        """Training FLOPs of one token: 2 per multiply-add forward, 4 backward.

        A route is paid for by the tokens that shall take it, whether or not others are computed beside them;
        the branch heads by every token, since their divergence is a mean over all.

        Args:
            block_size: T; a query meets (T + 1) / 2 keys and values on average.
        """
        V, D = self.tok_emb.weight.shape
        total = 0.0
        for layer, block in enumerate(self.equilibrium_blocks):
            context = (block_size + 1) / 2
            total += block.multiply_adds_per_token(context)
            if layer < len(self.blocks) - 1:  # the layer after it sends tokens back
                again = block.multiply_adds_per_token(context if self.reprocess_context else None)
                total += self._router(0).fractions[BACKWARD] * again
            if self.plastic is not None:
                total += self._router(0).fractions[PLASTIC] * 2 * D * self.plastic.down.out_features
        n_heads = 1 + (0 if self.branches is None else len(self.branches.heads))
        return 6.0 * (total + n_heads * V * D)

    def measures(self, output: LanguageModelOutput) -> Mapping[str, Measure]:
        """Route shares, thresholds and offsets, deviations, budgets and overflow of each layer."""
        routers = [self._router(layer) for layer in range(len(self.blocks))]
        return measures_of(
            output.routing,
            torch.stack([router.offset_scale * router.threshold_offsets.tanh() for router in routers]),
            routers[0].target_fractions,
            self.budget.max_budget_per_token,
        )

    def token_measures(self, output: LanguageModelOutput) -> Mapping[str, TokenMeasure]:
        """Route, deviation and units of every token and layer."""
        return token_measures_of(output.routing)
