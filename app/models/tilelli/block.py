"""The Tilelli block: several pathways over one normalised input, mixed per token by a router.

Shape suffixes: B batch, T sequence, D width, P pathways, N banks per pathway.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app import options
from app.models.activations import tap
from app.models.layers import LayerNorm
from app.models.tilelli.balance import Balance, BalanceLosses, bias_step
from app.models.tilelli.parts import (
    DiagonalSSM,
    SparseCausalAttention,
    TernaryCausalConv1d,
    TernaryFFN,
    TernaryLinear,
)
from app.models.tilelli.recurrent import Bank, BlockState
from app.models.tilelli.routing import (
    BankRouting,
    bank_load,
    best_bank,
    gate,
    gumbel_like,
    keep_largest,
    pathway_entropy,
)
from app.models.tilelli.weights import QuantisedWeight
from app.ops.pathway_mix import pathway_mix
from app.ops.precision import accumulation_dtype
from app.options import (
    Given,
    Needs,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Probability,
    UnitInterval,
    Within,
)

# Which pathways a block of P has, in the order of the router's outputs.
PATHWAYS = {
    3: ("local", "state", "sparse"),
    5: ("local", "wide", "state", "sparse", "dense"),
}
PATH_NORM_EPSILON = 1e-6
SEVERAL = Within("[2, inf)")


class TilelliBlock(nn.Module):
    """``y = x + Σ_p w_p · pathway_p(LayerNorm(x))``, with w and the bank of each pathway chosen per token.

    The router gives one probability r to each bank of each pathway. A pathway's weight is the sum over its
    banks, its bank the most likely one (the first of equals); the choice has no gradient.

    On purpose not as in the original: :meth:`forward` returns what the router decided beside ``y``, the auxiliary loss
    included, and keeps nothing of it on the module, so that a block can be called twice, on several ranks or inside of
    a recomputed pass; :meth:`infer` skips for any number of banks; a bank without a token has a gradient of zeros and
    not none, see :class:`~app.models.tilelli.TilelliLM`.

    Args:
        d_model: width of the residual stream.
        d_head: width of the sparse pathway's queries and keys.
        kernel_size: taps of the local pathway.
        wide_kernel_size: taps of the wide pathway.
        top_k: positions that the sparse pathway keeps per query.
        pathways: 5 (local, wide, state, sparse, dense) or 3 (local, state, sparse).
        n_banks: copies of each pathway's weights.
        skip_threshold: pathway weight below which :meth:`infer` skips; 0 skips nothing.
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

    @options.checked
    def __init__(
        self,
        d_model: PositiveInt = 128,
        d_head: PositiveInt = 32,
        kernel_size: PositiveInt = 5,
        wide_kernel_size: Annotated[PositiveInt, Needs(pathways=5)] = 21,
        top_k: PositiveInt = 8,
        pathways: Literal[3, 5] = 5,
        n_banks: PositiveInt = 1,
        skip_threshold: UnitInterval = 0.05,
        skip_mode: Literal["per_call", "per_token"] = "per_call",
        quantize: bool = True,
        per_row: Annotated[bool, Needs(quantize=True)] = False,
        hadamard: Annotated[bool, Needs(quantize=True)] = False,
        lsq: bool = False,
        dense_expand: Annotated[PositiveInt, Needs(pathways=5)] = 2,
        fp_attention: Annotated[bool, Needs(quantize=True)] = False,
        top_k_routing: NonNegativeInt = 0,
        bank_gate: Annotated[Literal["sum", "bank"], Needs(n_banks=SEVERAL)] = "sum",
        balance: Annotated[Balance, Needs(n_banks=SEVERAL)] = "original",
        state_init: Literal["original", "unit"] = "original",
        router_z_loss: NonNegativeFloat = 0.0,
        router_noise: NonNegativeFloat = 0.0,
        pathway_balance: NonNegativeFloat = 0.0,
        path_norm: bool = False,
        dropout: Probability = 0.0,
    ):
        super().__init__()
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
        self.norm = LayerNorm(d_model, for_products=True)
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
    def conflicts(given: Given) -> Iterator[tuple[str, str]]:
        yield from QuantisedWeight.conflicts(given)

    @staticmethod
    def without_effect(given: Given) -> Iterator[tuple[str, str]]:
        for name in ("skip_threshold", "skip_mode"):
            yield name, "in training and validation: network.infer alone skips"
        if given.d_model % 2 and (given.pathways == 3 or given.dense_expand % 2):
            yield "hadamard", "with inputs of odd width, which no block of the transform divides"
        if given.top_k_routing >= given.pathways * given.n_banks:
            yield "top_k_routing", "where it keeps every entry of the router"
        if given.top_k_routing == 1:
            # r is 1 or 0: its means have no gradient, and no second bank is left to choose.
            for name in ("bank_gate", "balance", "pathway_balance"):
                yield name, "with top_k_routing: 1, where the one entry that is kept weighs 1"

    def forward(
        self, x: Tensor, state: BlockState | None = None, *, skip: bool = False, bank: Tensor | None = None
    ) -> tuple[Tensor, BankRouting]:
        """Mix the pathways of ``x``.

        Args:
            x: ``(B, T, D)``; ``(B, 1, D)`` where ``state`` has read something.
            state: in evaluation, what the block remembers of the tokens before; it reads those of ``x``. One that has
                read nothing yet reads a prompt. None remembers nothing.
            skip: leaves out what :meth:`infer` does, and dropout and noise whatever the mode.
            bank: ``(B, T)`` int64, of all pathways, in place of the router's choice; its weights are the router's.

        Returns:
            ``(B, T, D)``, and what the router decided.
        """
        if state is not None and state.pathways:
            return self._step(x, state, bank)
        x = tap(self, "in", x)
        h = tap(self, "normed", self.norm(x))
        if skip:
            return self._without_idle(x, h, bank)
        routing = self._route(h, bank)
        if state is not None:
            state.router_weight = self.router.effective_weight()
            state.bank_index = routing.bank_index[:, -1:]
            state.pathways = [getattr(self, name).remember(h) for name in self.pathway_names]
        outputs = [
            tap(self, f"paths.{name}", self.scaled(getattr(self, name)(h, routing.bank_index[..., p])))
            for p, name in enumerate(self.pathway_names)
        ]
        mixed = tap(self, "mixed", pathway_mix(routing.pathway_weights, outputs).to(x.dtype))
        return tap(self, "out", x + F.dropout(mixed, self.dropout, self.training)), routing

    @torch.no_grad()
    def infer(self, x: Tensor) -> Tensor:
        """What :meth:`forward` gives in evaluation, but for what ``skip_threshold`` and ``skip_mode`` leave out.

        A pathway that no token needs is not computed. Without dropout and noise, whatever the mode.

        Args:
            x: ``(B, T, D)``.

        Returns:
            ``(B, T, D)``.
        """
        y: Tensor = self(x, skip=True)[0]
        return y

    def _without_idle(self, x: Tensor, h: Tensor, bank: Tensor | None) -> tuple[Tensor, BankRouting]:
        routing = self._decide(h, bank=bank)
        weights = routing.pathway_weights
        is_below = weights < self.skip_threshold
        is_skipped = is_below.flatten(0, 1).all(0).tolist()
        if self.skip_mode == "per_token":
            weights = weights.masked_fill(is_below, 0.0)
        kept = [p for p, skipped in enumerate(is_skipped) if not skipped]
        if not kept:
            return x.clone(), routing
        outputs = [
            self.scaled(getattr(self, self.pathway_names[p])(h, routing.bank_index[..., p])) for p in kept
        ]
        return x + pathway_mix(weights[..., kept], outputs).to(x.dtype), routing

    def _step(self, x: Tensor, state: BlockState, bank: Tensor | None) -> tuple[Tensor, BankRouting]:
        assert x.shape[1] == 1, "a step reads one token of each row"
        y = x.squeeze(1)
        h = self.norm(y)
        routing, banks = self._route_step(h, state, bank)
        weights = routing.pathway_weights.unbind(-1)  # (B, 1) each
        for pathway, weight, own in zip(state.pathways, weights, banks, strict=True):
            y = torch.addcmul(y, weight, self.scaled(pathway.step(h, own)))
        return y.to(x.dtype).unsqueeze(1), routing

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

    def state_size(self, n_tokens: int) -> int:
        """Bytes that the pathways remember of ``n_tokens`` tokens of one sequence."""
        return sum(getattr(self, name).state_size(n_tokens) for name in self.pathway_names)

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

    def _route(self, h: Tensor, bank: Tensor | None = None) -> BankRouting:
        """What :meth:`forward` does with ``h``; in training with noise, and counted."""
        if not self.training:
            return self._decide(h, bank=bank)
        routing = self._decide(h, self.router_noise, bank)
        if self.bank_count is not None:
            self.bank_count += bank_load(routing.bank_index, routing.pathway_weights, self.n_banks)
        return routing

    def _decide(self, h: Tensor, noise: float = 0.0, bank: Tensor | None = None) -> BankRouting:
        logits = self.router(h)
        logits = tap(self.router, "logits", logits.to(accumulation_dtype(logits)))
        disturbed = logits + noise * gumbel_like(logits) if noise > 0 else logits
        # (B, T, P, N), summing to 1 over the last two axes; fp32 at least.
        probabilities = disturbed.softmax(-1).unflatten(-1, (len(self.pathway_names), self.n_banks))
        probabilities = tap(self.router, "probabilities", probabilities)
        r, kept = keep_largest(probabilities, self.top_k_routing)
        chosen = tap(self.router, "bank", self._chosen(r, kept, bank), self.n_banks)
        weights = tap(self.router, "weights", gate(r, chosen, self.bank_gate))
        bank_probability = r.mean((0, 1))
        means = self.losses.means(r, chosen, bank_probability, logits)
        return BankRouting(
            pathway_weights=weights,
            bank_index=chosen,
            router_weights=weights if kept is None else gate(probabilities, chosen, self.bank_gate),
            bank_probability=bank_probability,
            aux_loss=self.losses.total(means),
            auxiliary_means=means,
        )

    def _chosen(self, r_BTPN: Tensor, kept_BTPN: Tensor | None, bank: Tensor | None) -> Tensor:
        """The bank of each pathway, ``(B, T, P)``: the likeliest, or the one that is named for all pathways."""
        if bank is None:
            return best_bank(r_BTPN, kept_BTPN, self.router_bias)
        return bank.unsqueeze(-1).expand(r_BTPN.shape[:-1])

    def _route_step(
        self, h: Tensor, state: BlockState, fixed: Tensor | None
    ) -> tuple[BankRouting, Sequence[Bank]]:
        """What :meth:`_decide` does with one token ``(B, D)`` of each row; also the bank of each pathway."""
        logits = F.linear(h, state.router_weight)
        probabilities = logits.to(accumulation_dtype(logits)).softmax(-1)
        probabilities = probabilities.view(-1, 1, len(self.pathway_names), self.n_banks)  # (B, 1, P, N)
        r, kept = keep_largest(probabilities, self.top_k_routing)
        banks: Sequence[Bank]
        if self.n_banks == 1:
            weights, bank, banks = r.squeeze(-1), state.bank_index, [0] * len(self.pathway_names)
        else:
            bank = self._chosen(r, kept, fixed)
            weights = gate(r, bank, self.bank_gate)
            # With one row on the CPU, reading a number waits for nothing.
            on_hand = h.shape[0] == 1 and h.device.type == "cpu"
            banks = bank.flatten().tolist() if on_hand else bank.squeeze(1).unbind(1)
        before = weights if kept is None else gate(probabilities, bank, self.bank_gate)
        return BankRouting(weights, bank, before), banks
