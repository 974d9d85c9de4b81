"""Equilibrium as a LightningModule."""

from typing import Any, Literal

import torch
from torch import Tensor

from app.models import LanguageModelOutput
from app.models.equilibrium import EquilibriumLM
from app.models.equilibrium.network import N_ROUTES
from app.models.equilibrium.routing import PLASTIC
from app.training.language_model import LanguageModelModule
from app.training.network_problems import network_problems


class EquilibriumModule(LanguageModelModule):
    """Trains :class:`app.models.equilibrium.EquilibriumLM`.

    Args:
        vocab_size: symbols; taken from the data.
        block_size: longest sequence in tokens; taken from the data.
        d_model: width.
        n_heads: attention heads per block; must divide ``d_model``.
        n_layers: blocks.
        d_ff: inner width of the feed-forward networks.
        dropout: on the embedding, on attention weights and in the feed-forward networks, in [0, 1).
        use_attention_residual: residuals attend over the outputs of all earlier blocks.
        use_plastic: plastic tokens pass an adapter; otherwise they go forward.
        plastic_hidden: inner width of the adapter.
        use_branches: branch tokens of the last layer get their logits from several heads.
        n_branches: number of those heads.
        use_verifier: a verifier weighs the heads; otherwise their mean is taken.
        routing_warmup_steps: batches (optimizer steps with ``statistics: lagged``) that move the statistics before
            routing begins; with ``current`` the last of them is routed already.
        max_budget_per_token: most units of compute that a token may cost.
        total_budget_ratio: units per token that a row may cost on average.
        statistics: ``current`` folds a batch into the running statistics before it is scored, so that in training
            a token sees later ones; ``lagged`` scores with what was there before, and is causal.
        standardize: route on the deviation in units of its own mean and spread.
        soft: soft decision by distance to ``centres`` of intervals or by ``ordinal`` sigmoids at the thresholds.
        shared_router: one router for all layers; otherwise one for each.
        enforce_budget: a row takes no more than its units; tokens that do not fit go forward.
        budget_order: who is served first, by ``deviation`` (not causal) or by position (``causal``).
        reprocess_context: a backward token attends to the positions before it, not to itself alone.
        quantile: thresholds from a ``sort`` (exact for each batch; with ``lagged`` the mean over micro-batches and
            processes) or a ``histogram`` (at most one of 4096 bins off, of the global batch).
        capacity_factor: room of each route in a row as a multiple of its target share; tokens beyond go forward
            and are counted. Null has room for all.
        activation_checkpointing: compute the blocks again in the backward pass; less memory, more time.
        adapt: in evaluation, let the plastic adapter go on learning: each batch is scored, then adapted on. The
            trained weights are put back at the end of the evaluation.
        training: optimizer, schedule and clipping, see :class:`LanguageModelModule`.
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
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
        routing_warmup_steps: int = 50,
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
        adapt: bool = False,
        **training: Any,
    ) -> None:
        network = EquilibriumLM(
            vocab_size=vocab_size,
            block_size=block_size,
            d_model=d_model,
            n_heads=n_heads,
            n_layers=n_layers,
            d_ff=d_ff,
            dropout=dropout,
            use_attention_residual=use_attention_residual,
            use_plastic=use_plastic,
            plastic_hidden=plastic_hidden,
            use_branches=use_branches,
            n_branches=n_branches,
            use_verifier=use_verifier,
            warmup_steps=routing_warmup_steps,
            max_budget_per_token=max_budget_per_token,
            total_budget_ratio=total_budget_ratio,
            statistics=statistics,
            standardize=standardize,
            soft=soft,
            shared_router=shared_router,
            enforce_budget=enforce_budget,
            budget_order=budget_order,
            reprocess_context=reprocess_context,
            quantile=quantile,
            capacity_factor=capacity_factor,
            activation_checkpointing=activation_checkpointing,
        )
        super().__init__(network=network, **training)
        self.adapt = adapt
        self._batches_scored = 0

    @classmethod
    def problems(cls, **arguments: Any) -> list[str]:
        """Range rules of the network and of the training arguments."""
        # The rate's warm-up and the routing's are two things under one name in two signatures.
        renamed = {name: value for name, value in arguments.items() if name != "warmup_steps"}
        if "routing_warmup_steps" in arguments:
            renamed["warmup_steps"] = renamed.pop("routing_warmup_steps")
        found = [
            line.replace("warmup_steps", "routing_warmup_steps", 1)
            if line.startswith("warmup_steps")
            else line
            for line in network_problems(EquilibriumLM, renamed)
        ]
        return found + super().problems(**arguments)

    @classmethod
    def without_effect(cls, **arguments: Any) -> list[tuple[str, str]]:
        """Also what belongs to routes or budgets that are not there."""
        found = super().without_effect(**arguments)
        if not arguments["use_plastic"]:
            found += [(name, "with use_plastic: false") for name in ("plastic_hidden", "adapt")]
        if not arguments["use_branches"]:
            found += [(name, "with use_branches: false") for name in ("n_branches", "use_verifier")]
        elif arguments["n_branches"] == 1:
            found.append(("use_verifier", "with n_branches: 1"))
        dearest = min(N_ROUTES, arguments["max_budget_per_token"])
        if not arguments["enforce_budget"]:
            found.append(("budget_order", "with enforce_budget: false"))
        elif arguments["total_budget_ratio"] >= dearest:
            ratio = arguments["total_budget_ratio"]
            found.append(("budget_order", f"with total_budget_ratio: {ratio}, which every row stays within"))
        if arguments["max_budget_per_token"] > N_ROUTES:
            found.append(("max_budget_per_token", f"beyond {N_ROUTES}, the units of the dearest route"))
        if arguments["n_layers"] == 1:
            found += [(name, "with n_layers: 1") for name in ("shared_router", "reprocess_context")]
            if not arguments["use_plastic"] and not arguments["use_branches"]:
                found.append(("capacity_factor", "without a route that does anything"))
        return found

    # -- adaptation in evaluation -----------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Also counts batches anew; the noise of the adaptation is keyed by their number."""
        super().on_validation_epoch_start()
        self._batches_scored = 0

    on_test_epoch_start = on_validation_epoch_start

    def after_scoring(self, output: LanguageModelOutput, targets: Tensor) -> None:
        """With ``adapt``, one step on the last layer's plastic tokens, the same on every rank, then decay."""
        plastic = self._network.plastic
        if not self.adapt or plastic is None:
            return
        last = output.routing[-1]
        # Evaluation may wait for the device; padding is no token.
        tokens = last.plastic_input[(last.route == PLASTIC) & (targets >= 0)]
        generator = torch.Generator(tokens.device).manual_seed(self._batches_scored)
        plastic.adapt(tokens, generator)
        plastic.decay()
        self._batches_scored += 1

    def on_validation_epoch_end(self) -> None:
        """Also puts the trained weights back."""
        super().on_validation_epoch_end()
        self._forget()

    def on_test_epoch_end(self) -> None:
        """The same for the test split."""
        super().on_test_epoch_end()
        self._forget()

    def _forget(self) -> None:
        if self._network.plastic is not None:
            self._network.plastic.reset()

    @property
    def _network(self) -> EquilibriumLM:
        assert isinstance(self.network, EquilibriumLM)
        return self.network
