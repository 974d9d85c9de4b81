"""The Equilibrium language model.

Shape suffixes: B batch, T sequence, D width, V vocabulary, L layers, J pairs of branches.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from app.models.activations import is_watched, tap
from app.models.attention import key_value_bytes
from app.models.equilibrium.block import EquilibriumBlock, KeysValues, PackedPass, SecondPass, is_plain
from app.models.equilibrium.branches import (
    BranchHeads,
    Verifier,
    divergence,
    diversity_loss,
)
from app.models.equilibrium.budget import BudgetOrder, TokenEnergyBudget
from app.models.equilibrium.capacity import CapacityBuffer, Everywhere, RouteCapacity, replaced
from app.models.equilibrium.config import N_ROUTES, EquilibriumConfig
from app.models.equilibrium.plastic import PlasticAdapter
from app.models.equilibrium.records import (
    Decision,
    measures_of,
    records_of,
    token_measures_of,
    tokens_per_route,
)
from app.models.equilibrium.routing import (
    BACKWARD,
    BRANCH,
    FORWARD,
    PLASTIC,
    RoutingDecision,
)
from app.models.equilibrium.signal import EquilibriumSignal
from app.models.equilibrium.statistics import StepStatistics, is_recomputing, moments
from app.models.fixed_choice import places
from app.models.language_model import LanguageModel, next_token_loss
from app.models.layers import Embedding, LayerNorm, modules_of
from app.ops.second_pass import adapter_pass
from app.ops.second_pass.room import has_kernels
from app.records import LanguageModelOutput, Measure, TokenMeasure

INITIAL_STD = 0.02  # GPT-2's
ROUTING_RATE = 0.1


class EquilibriumLM(LanguageModel, options_of=EquilibriumConfig):
    """Transformer whose tokens are routed after each block by their deviation from running statistics.

    A token goes forward, gets its logits from several heads (branch, last layer only), is processed again by the
    block before (backward), or passes an adapter (plastic). The defaults are the original form; every option
    away from them changes what is computed.

    Args:
        fields: options of :class:`EquilibriumConfig`.

    Raises:
        ValueError: an option is out of range; the message names every such option.
    """

    can_capture_after_step = True

    def __init__(self, /, **fields: Any):
        super().__init__()
        config = EquilibriumConfig(**fields)
        self.max_context = config.block_size
        self.route_choice = config.route_choice
        self.dropout = config.dropout
        self.enforce_budget = config.enforce_budget
        self.budget_order: BudgetOrder = config.budget_order
        self.reprocess_context = config.reprocess_context
        self.activation_checkpointing = config.activation_checkpointing
        self.diversity_target = config.diversity_target
        self.diversity_weight = config.diversity_weight
        self.fraction_weight = config.fraction_weight
        D, L = config.d_model, config.n_layers
        self.tok_emb = Embedding(config.vocab_size, D)
        self.pos_emb = nn.Embedding(config.block_size, D)
        self.blocks = nn.ModuleList(
            EquilibriumBlock(D, config.n_heads, config.d_ff, config.dropout, config.use_attention_residual)
            for _ in range(L)
        )
        self.signals = nn.ModuleList(
            EquilibriumSignal(
                D, config.signal_momentum, config.warmup_steps, config.statistics, config.standardize
            )
            for _ in range(L)
        )
        n_routers = 1 if config.shared_router else L
        self.routers = nn.ModuleList(
            RoutingDecision(
                config.first_thresholds, config.target_fractions, config.threshold_momentum, config.temperature,
                config.offset_scale, config.statistics, config.soft, config.quantile, config.value_range,
            )
            for _ in range(n_routers)
        )  # fmt: skip
        by_histogram = config.quantile == "histogram"
        self.step_statistics = (
            StepStatistics(L, D, n_routers, N_ROUTES - 1, by_histogram, config.value_range)
            if config.statistics == "lagged"
            else None
        )
        self.budget = TokenEnergyBudget(config.max_budget_per_token, config.total_budget_ratio)
        budget = self.budget if config.enforce_budget else None
        fractions = self.routing_decisions[0].fractions
        self.route_capacity = RouteCapacity(fractions, config.capacity_factor, budget)
        self.plastic = (
            PlasticAdapter(
                D, config.plastic_hidden, config.plastic_rate, config.plastic_mask, config.plastic_noise,
                config.plastic_penalty, config.plastic_decay,
            )
            if config.use_plastic
            else None
        )  # fmt: skip
        self.branches = (
            BranchHeads(D, config.vocab_size, config.n_branches, config.diversity_target)
            if config.use_branches
            else None
        )
        is_verified = config.use_branches and config.use_verifier
        self.verifier = Verifier(config.verifier_weights, config.verifier_sharpness) if is_verified else None
        self.norm_f = LayerNorm(D, for_products=True)
        self.head = nn.Linear(D, config.vocab_size, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INITIAL_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def state_size(self, n_tokens: int) -> int:
        """See :meth:`LanguageModel.state_size`: keys and values of every block, all that later tokens read of earlier
        ones. This network does not step yet: it forms them again."""
        return key_value_bytes(len(self.blocks), self.tok_emb, n_tokens, self.pos_emb.num_embeddings)

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
        x = tap(self, "embed", self.tok_emb(idx)) + tap(
            self, "pos_embed", self.pos_emb(position)
        )  # (B, T, D)
        x = F.dropout(x, self.dropout, self.training)
        history: list[Tensor] = []
        firsts: list[KeysValues] = []
        decisions: list[Decision] = []
        for layer, block in enumerate(self.blocks):
            x = tap(self, f"blocks.{layer}.in", x)
            history.append(x)
            out, first = self._call(block, x, *history)
            out = tap(self, f"blocks.{layer}.processed", out)
            decided = self._decide(layer, out, idx)
            x = self._routed(layer, out, decided.route, history, firsts)
            x = tap(self, f"blocks.{layer}.out", x)
            firsts.append(first)
            decisions.append(decided)
        if self.step_statistics is not None and self.training and not is_recomputing():
            self.step_statistics.add_deviations(
                [decided.deviation.detach() for decided in decisions],
                [signal.usual_deviation for signal in self.equilibrium_signals],
                [decided.score.detach() for decided in decisions],
                self._router(0).target_cdf,
            )
        logits, divergences = self._logits(tap(self, "final", self.norm_f(x)), decisions[-1].route)
        plastic_input = out.detach() if self._keeps_plastic_input() else logits.new_zeros(0)
        records = records_of(decisions, divergences, plastic_input, self.budget)
        output = LanguageModelOutput(
            logits, next_token_loss(logits, targets), logits.new_zeros(()), list(records)
        )
        return output._replace(aux_loss=self.auxiliary_losses(self.auxiliary_means(output)))

    def _call(self, block: nn.Module, *inputs: Tensor, second: SecondPass | PackedPass | None = None) -> Any:
        # What an intervention has replaced would not come again when the block is computed a second time.
        if self.activation_checkpointing and self.training and torch.is_grad_enabled() and not is_watched():
            return checkpoint(block, *inputs, use_reentrant=False, second=second)
        return block(*inputs, second=second)

    def _decide(self, layer: int, out: Tensor, idx: Tensor) -> Decision:
        signal = self.equilibrium_signals[layer]
        # No loss reads the routing of an earlier layer, so that nothing is lost where its graph ends.
        source = out if layer == len(self.blocks) - 1 else out.detach()
        collects = self.step_statistics is not None and self.training and not is_recomputing()
        deviation, warming_up, sums = signal(source, collects)
        deviation = tap(self, f"blocks.{layer}.router.deviation", deviation)
        if self.step_statistics is not None and sums is not None:
            self.step_statistics.add_outputs(layer, sums)
        score = signal.standardized(deviation)
        route, probabilities, thresholds = self._router(layer)(score)
        probabilities = tap(self, f"blocks.{layer}.router.probabilities", probabilities)
        if self.route_choice != "deviation":
            route = self._fixed_route(layer, idx)
        route = torch.where(warming_up, FORWARD, route)
        capped = None
        if self.enforce_budget:
            affordable = self.budget.affordable(route)
            route = self.budget.granted(affordable, deviation.detach(), self.budget_order)
            capped = (route != affordable).any(-1)
        route = tap(self, f"blocks.{layer}.router.choice", route, N_ROUTES)
        overflow = None
        if self.route_capacity.drops:
            asked, route = route, self.route_capacity.within_capacity(route, self._routes_at_work(layer))
            overflow = tokens_per_route(asked) - tokens_per_route(route)
        return Decision(
            route=route,
            warming_up=warming_up,
            deviation=deviation,
            score=score,
            probabilities=probabilities,
            thresholds=thresholds,
            capped=capped,
            overflow=overflow,
        )

    def _fixed_route(self, layer: int, idx: Tensor) -> Tensor:
        """The route ``(B, T)`` of each token where its deviation does not choose it."""
        if self.route_choice == "forward":
            return torch.full_like(idx, FORWARD)
        place = places(self.route_choice, idx, 0, layer, self.tok_emb.num_embeddings)
        return torch.bucketize(place, self._router(layer).target_cdf, right=True)

    def _routes_at_work(self, layer: int) -> list[int]:
        """The routes that do something in this layer."""
        is_last = layer == len(self.blocks) - 1
        does = {
            BRANCH: is_last and self.branches is not None,
            BACKWARD: layer > 0,
            PLASTIC: self.plastic is not None,
        }
        return [route for route, does_work in does.items() if does_work]

    def _routed(
        self, layer: int, out: Tensor, route: Tensor, history: Sequence[Tensor], firsts: Sequence[KeysValues]
    ) -> Tensor:
        """The block's output with backward and plastic tokens replaced; ``out`` itself is not written to."""
        T = route.shape[1]
        x = out
        first = firsts[layer - 1] if layer > 0 and self.reprocess_context else None
        earlier = self.blocks[layer - 1] if layer > 0 else None
        if isinstance(earlier, EquilibriumBlock) and earlier.packs(out, layer):
            packed = PackedPass(route == BACKWARD, first)
            x = self._call(earlier, out, *history[:layer], second=packed)[0]
        elif earlier is not None:
            block = earlier

            def again(room: CapacityBuffer | Everywhere) -> Tensor:
                seen = [room.gather(h) for h in history[:layer]]
                second = SecondPass(room.position, first)
                y: Tensor = self._call(block, room.gather(out), *seen, second=second)[0]
                return tap(self, f"blocks.{layer}.paths.backward", y)

            x = replaced(x, route == BACKWARD, self.route_capacity.size(BACKWARD, T), again)
        if self.plastic is not None:
            adapter = self.plastic
            if is_plain(adapter.down, adapter.up) and not is_watched() and has_kernels(x):
                return adapter_pass(x, route == PLASTIC, dict(adapter.named_parameters()))
            x = replaced(
                x,
                route == PLASTIC,
                self.route_capacity.size(PLASTIC, T),
                lambda buffer: tap(self, f"blocks.{layer}.paths.plastic", adapter(buffer.gather(out))),
            )
        return x

    def _logits(self, hidden: Tensor, route: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(B, T, V)``, and the divergence ``(J)`` of the pairs of branches."""
        logits = self.head(hidden)
        if self.branches is None:
            return tap(self, "logits", logits), logits.new_zeros(0)
        branch_logits = tap(
            self, "branches.logits", self.branches.logits(hidden)
        )  # (n, B, T, V): diversity is the mean over all tokens

        def mixed(room: CapacityBuffer | Everywhere) -> Tensor:
            own = torch.stack([room.gather(each) for each in branch_logits])
            mixture: Tensor = own.mean(0) if self.verifier is None else self.verifier(own).logits
            return mixture

        size = self.route_capacity.size(BRANCH, route.shape[1])
        logits = tap(self, "logits", replaced(logits, route == BRANCH, size, mixed))
        return logits, divergence(branch_logits)

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
        """The weighted diversity loss and mean squared distance to the target fractions, once routing has begun."""
        last_probabilities = means[1 + N_ROUTES * (len(self.blocks) - 1) :][:N_ROUTES]
        divergences = means[1 + N_ROUTES * len(self.blocks) :]
        distance = (last_probabilities - self._router(0).target_fractions).square().mean()
        diversity = diversity_loss(divergences, self.diversity_target)
        weighted = self.diversity_weight * diversity + self.fraction_weight * distance
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

    def starting_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Target fractions are this network's own, and so are thresholds where the other's are on another scale."""
        taken = dict(weights)
        was_standardized = any(name.endswith(".deviation_mean") for name in weights)
        is_standardized = self.equilibrium_signals[0].standardize
        for index, router in enumerate(self.routing_decisions):
            prefix = f"routers.{index}."
            if prefix + "target_cdf" in taken:
                taken[prefix + "target_cdf"] = router.target_cdf
            if was_standardized != is_standardized:
                for name in ("running_thresholds", "num_batches_tracked"):
                    taken.pop(prefix + name, None)
        return taken

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
    def equilibrium_signals(self) -> list[EquilibriumSignal]:
        return modules_of(self.signals, EquilibriumSignal)

    @property
    def routing_decisions(self) -> list[RoutingDecision]:
        """One for all layers, or one per layer."""
        return modules_of(self.routers, RoutingDecision)

    def _router(self, layer: int) -> RoutingDecision:
        return self.routing_decisions[layer if len(self.routers) > 1 else 0]

    def _keeps_plastic_input(self) -> bool:
        return self.plastic is not None and not self.training

    def flops_per_token(self, block_size: int) -> float:
        """Training FLOPs of one token: 2 per multiply-add forward, 4 backward.

        A route is paid for by the tokens that shall take it, whether or not others are computed beside them;
        the branch heads by every token, since their divergence is a mean over all.

        Args:
            block_size: T; a query meets (T + 1) / 2 keys and values on average.
        """
        V, D = self.tok_emb.weight.shape
        total = 0.0
        for layer, block in enumerate(modules_of(self.blocks, EquilibriumBlock)):
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
