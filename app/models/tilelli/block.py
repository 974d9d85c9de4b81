"""The Tilelli block: several pathways over one normalised input, mixed per token by a router.

Shape suffixes: B batch, T sequence, D width, P pathways, N banks per pathway.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.models.tilelli.balance import Balance, BalanceLosses, bias_step
from app.models.tilelli.parts import (
    DiagonalSSM,
    SparseCausalAttention,
    TernaryCausalConv1d,
    TernaryFFN,
    TernaryLinear,
)
from app.models.tilelli.routing import (
    BankRouting,
    bank_load,
    best_bank,
    gate,
    gumbel_like,
    keep_largest,
    pathway_entropy,
)
from app.models.tilelli.weights import OperatorModule, quantiser_problems

# Which pathways a block of P has, in the order of the router's outputs.
PATHWAYS = {
    3: ("local", "state", "sparse"),
    5: ("local", "wide", "state", "sparse", "dense"),
}
PATH_NORM_EPSILON = 1e-6
COUNTS = ("d_model", "d_head", "kernel_size", "wide_kernel_size", "top_k", "n_banks", "dense_expand")
CHOICES = {
    "skip_mode": ("per_call", "per_token"),
    "bank_gate": ("sum", "bank"),
    "balance": ("original", "switch", "bias", "none"),
    "state_init": ("original", "unit"),
}


class TilelliBlock(OperatorModule):
    """``y = x + Σ_p w_p · pathway_p(LayerNorm(x))``, with w and the bank of each pathway chosen per token.

    The router gives one probability r to each bank of each pathway. A pathway's weight is the sum over its
    banks, its bank the most likely one (the first of equals); the choice has no gradient.

    Args:
        d_model: width.
        d_head: width of the sparse pathway's queries and keys.
        kernel_size: taps of the local pathway.
        wide_kernel_size: taps of the wide pathway.
        top_k: positions that the sparse pathway keeps per query.
        pathways: 5 (local, wide, state, sparse, dense) or 3 (local, state, sparse).
        n_banks: copies of each pathway's weights.
        skip_threshold: pathway weight below which :meth:`infer` skips, in [0, 1]; 0 skips nothing.
        skip_mode: ``per_call`` leaves a pathway out whose weight stays below on all tokens; ``per_token`` takes
            its weight as 0 on each token where it is below.
        quantize: whether weights are ternary.
        per_row: a ternary scale per output row (per channel of a convolution), not for the sparse pathway.
        hadamard: quantise router and dense pathway in the Walsh–Hadamard basis of their inputs.
        lsq: learn the ternary scales, not for the sparse pathway.
        dense_expand: hidden width of the dense pathway over ``d_model``.
        fp_attention: leave the sparse pathway's weights unquantised.
        top_k_routing: entries of r that a token keeps, scaled to sum to 1; 0 keeps all. With 1 the kept entry weighs
            1 whatever the logits are: of all losses the router's z-loss alone then has a gradient by them, but
            for rounding.
        bank_gate: whether a pathway weighs the ``sum`` over its banks or what its chosen ``bank`` has.
        balance: how banks are kept in use, see :class:`~app.models.tilelli.balance.BalanceLosses`; ``bias`` adds
            a buffer ``router_bias`` to r for the choice of the bank alone and moves it after each step.
        state_init: gains of the state pathway, see :class:`DiagonalSSM`.
        router_z_loss: weight on the mean squared logsumexp of the router's logits.
        router_noise: scale of Gumbel noise on the router's logits in training.
        pathway_balance: weight on the squared deviation of the pathways' mean weights from uniform.
        path_norm: RMSNorm without gain, in fp32, on each pathway's output.
        dropout: probability, on the mixed output before it joins the residual stream.

    Raises:
        ValueError: an argument is out of range; the message names every such argument.
    """

    router_bias: Tensor | None
    bank_count: Tensor | None

    def __init__(
        self,
        d_model: int,
        d_head: int = 32,
        kernel_size: int = 5,
        wide_kernel_size: int = 21,
        top_k: int = 8,
        pathways: int = 5,
        n_banks: int = 1,
        skip_threshold: float = 0.05,
        skip_mode: Literal["per_call", "per_token"] = "per_call",
        quantize: bool = True,
        per_row: bool = False,
        hadamard: bool = False,
        lsq: bool = False,
        dense_expand: int = 2,
        fp_attention: bool = False,
        top_k_routing: int = 0,
        bank_gate: Literal["sum", "bank"] = "sum",
        balance: Balance = "original",
        state_init: Literal["original", "unit"] = "original",
        router_z_loss: float = 0.0,
        router_noise: float = 0.0,
        pathway_balance: float = 0.0,
        path_norm: bool = False,
        dropout: float = 0.0,
    ):
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        problems = self.problems(**arguments)
        if problems:
            raise ValueError("\n".join(problems))
        self.pathway_names = PATHWAYS[pathways]
        self.n_banks = n_banks
        self.skip_threshold = skip_threshold
        self.skip_mode = skip_mode
        self.top_k_routing = top_k_routing
        self.bank_gate = bank_gate
        self.router_noise = router_noise
        self.path_norm = path_norm
        self.dropout = dropout
        self.losses = BalanceLosses(pathways, n_banks, balance, router_z_loss, pathway_balance)
        self.norm = nn.LayerNorm(d_model)
        self.router = TernaryLinear(d_model, pathways * n_banks, quantize, per_row, hadamard, lsq)
        convolution = (n_banks, quantize, per_row, lsq)
        self.local = TernaryCausalConv1d(d_model, kernel_size, *convolution)
        if "wide" in self.pathway_names:
            self.wide = TernaryCausalConv1d(d_model, wide_kernel_size, *convolution)
        self.state = DiagonalSSM(d_model, n_banks, state_init)
        self.sparse = SparseCausalAttention(d_model, d_head, top_k, n_banks, quantize and not fp_attention)
        if "dense" in self.pathway_names:
            self.dense = TernaryFFN(d_model, dense_expand, n_banks, quantize, per_row, hadamard, lsq)
        is_biased = balance == "bias"
        self.register_buffer("router_bias", torch.zeros(pathways, n_banks) if is_biased else None)
        # Tokens of this optimizer step that used each bank.
        count = torch.zeros(pathways, n_banks, dtype=torch.int64) if is_biased else None
        self.register_buffer("bank_count", count, persistent=False)

    @staticmethod
    def problems(**arguments: Any) -> list[str]:
        """A line ``name = value: rule`` for every argument that is out of range, given all of them."""
        found = []

        def check(name: str, holds: bool, rule: str) -> None:
            if not holds:
                found.append(f"{name} = {arguments[name]}: {rule}")

        for name in COUNTS:
            check(name, arguments[name] >= 1, "must be at least 1")
        known = " or ".join(f"{p} ({', '.join(names)})" for p, names in PATHWAYS.items())
        check("pathways", arguments["pathways"] in PATHWAYS, f"must be {known}")
        check("skip_threshold", 0 <= arguments["skip_threshold"] <= 1, "must lie in [0, 1]")
        for name, choices in CHOICES.items():
            check(name, arguments[name] in choices, f"must be one of {', '.join(choices)}")
        check("top_k_routing", arguments["top_k_routing"] >= 0, "must be at least 0 (0 keeps every entry)")
        for name in ("router_z_loss", "router_noise", "pathway_balance"):
            check(name, 0 <= arguments[name] < float("inf"), "must be finite and at least 0")
        check("dropout", 0 <= arguments["dropout"] < 1, "must lie in [0, 1)")
        return found + quantiser_problems(arguments["quantize"], arguments["per_row"], arguments["lsq"])

    def forward(self, x: Tensor) -> tuple[Tensor, BankRouting]:
        """Mix the pathways of ``x`` ``(B, T, D)`` into ``y`` ``(B, T, D)``; also what the router decided."""
        h = self.norm(x)
        routing = self._route(h)
        outputs = [
            self.scaled(getattr(self, name)(h, routing.bank_index[..., p]))
            for p, name in enumerate(self.pathway_names)
        ]
        mixed = self.operations.pathway_mix(routing.pathway_weights, outputs).to(x.dtype)
        return x + F.dropout(mixed, self.dropout, self.training), routing

    @torch.no_grad()
    def infer(self, x: Tensor) -> Tensor:
        """What :meth:`forward` gives in evaluation, but for what ``skip_threshold`` and ``skip_mode`` leave out.

        A pathway that no token needs is not computed. Without dropout and noise, whatever the mode.

        Args:
            x: ``(B, T, D)``.

        Returns:
            ``(B, T, D)``.
        """
        h = self.norm(x)
        routing = self._decide(h)
        weights = routing.pathway_weights
        is_below = weights < self.skip_threshold
        is_skipped = is_below.flatten(0, 1).all(0).tolist()
        if self.skip_mode == "per_token":
            weights = weights.masked_fill(is_below, 0.0)
        kept = [p for p, skipped in enumerate(is_skipped) if not skipped]
        if not kept:
            return x.clone()
        outputs = [
            self.scaled(getattr(self, self.pathway_names[p])(h, routing.bank_index[..., p])) for p in kept
        ]
        return x + self.operations.pathway_mix(weights[..., kept], outputs).to(x.dtype)

    def scaled(self, output: Tensor) -> Tensor:
        """A pathway's output ``(..., D)`` as it is mixed: at its own scale, or with ``path_norm`` at one for all."""
        if not self.path_norm:
            return output
        wide = output.to(torch.promote_types(output.dtype, torch.float32))
        return F.rms_norm(wide, wide.shape[-1:], eps=PATH_NORM_EPSILON).to(output.dtype)

    def router_weights(self, x: Tensor) -> Tensor:
        """Weight of each pathway for each token of ``x`` ``(B, T, D)``, ``(B, T, P)``, before top-k routing."""
        return self._decide(self.norm(x)).router_weights

    def router_entropy(self, x: Tensor) -> Tensor:
        """Entropy of the pathway weights of each token of ``x`` ``(B, T, D)``: ``(B, T)``, nats."""
        return pathway_entropy(self.router_weights(x))

    def after_optimizer_step(self) -> None:
        """Moves ``router_bias`` by the counts of the step, where there is one."""
        if self.router_bias is not None and self.bank_count is not None:
            self.router_bias += bias_step(self.bank_count)

    def multiply_adds_per_token(self, mean_context: float) -> float:
        """Multiply-adds of one token's forward: its own banks, and the keys that it offers to every bank.

        Args:
            mean_context: positions that a query is scored against, on average.
        """
        D = self.norm.normalized_shape[0]
        d_head = self.sparse.query.weight.shape[1]
        sparse = (1 + self.n_banks) * d_head * D + mean_context * d_head + (self.sparse.top_k + D) * D
        total = self.router.weight.numel() + self.local.weight[0].numel() + 3 * D + sparse
        if "wide" in self.pathway_names:
            total += self.wide.weight[0].numel()
        if "dense" in self.pathway_names:
            total += self.dense.up.weight[0].numel() + self.dense.down.weight[0].numel()
        return total

    def _route(self, h: Tensor) -> BankRouting:
        """What :meth:`forward` does with ``h``; in training with noise, and counted."""
        if not self.training:
            return self._decide(h)
        routing = self._decide(h, self.router_noise)
        if self.bank_count is not None:
            self.bank_count += bank_load(routing.bank_index, routing.pathway_weights, self.n_banks)
        return routing

    def _decide(self, h: Tensor, noise: float = 0.0) -> BankRouting:
        logits = self.router(h)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        disturbed = logits + noise * gumbel_like(logits) if noise > 0 else logits
        # (B, T, P, N), summing to 1 over the last two axes; fp32 at least.
        probabilities = disturbed.softmax(-1).unflatten(-1, (len(self.pathway_names), self.n_banks))
        r, kept = keep_largest(probabilities, self.top_k_routing)
        bank = best_bank(r, kept, self.router_bias)
        weights = gate(r, bank, self.bank_gate)
        bank_probability = r.mean((0, 1))
        means = self.losses.means(r, bank, bank_probability, logits)
        return BankRouting(
            pathway_weights=weights,
            bank_index=bank,
            bank_probability=bank_probability,
            aux_loss=self.losses.total(means),
            router_weights=weights if kept is None else gate(probabilities, bank, self.bank_gate),
            auxiliary_means=means,
        )
