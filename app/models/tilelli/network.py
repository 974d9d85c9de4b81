"""The Tilelli language model."""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.models.activations import tap
from app.models.fixed_choice import banks
from app.models.language_model import LanguageModel, next_token_loss
from app.models.layers import Embedding, LayerNorm, modules_of
from app.models.tilelli.block import SEVERAL, TilelliBlock
from app.models.tilelli.parts import DiagonalSSM, TernaryCausalConv1d, TernaryLinear
from app.models.tilelli.recurrent import BlockState, TilelliCache
from app.models.tilelli.routing import BankRouting, bank_load, pathway_entropy
from app.models.tilelli.weights import QuantisedWeight
from app.options import Given, Needs, NonNegativeFloat, PositiveInt, Probability
from app.records import Axis, LanguageModelOutput, Measure, TernaryWeight, TokenMeasure


class TilelliLM(LanguageModel, options_of=TilelliBlock):
    """Token embedding, Tilelli blocks, LayerNorm, ternary head.

    On purpose not as in the original: a bank, or a whole pathway, that no token of a step uses has a gradient of zeros,
    since banks are stacked in one tensor. So it decays like any other weight, AdamW's moments shrink, and the step
    counts in their bias correction; the published original has a parameter for each bank, which then has no gradient
    and is left out of the update. No difference could be told where few tokens leave many banks idle (``python -m
    tests.models.bench_idle_banks``: 32 tokens a step, 1,500 steps, held-out nats, mean ± sd of 3 seeds, torch 2.13 on a
    CPU): 4 banks, 5 % of them idle in a step, 2.309 ± 0.043, and 2.323 ± 0.020 where idle banks are skipped; 8 banks,
    19 % idle, 2.332 ± 0.022 and 2.344 ± 0.025.

    Args:
        vocab_size: number of tokens that there are; taken from the data.
        d_model: width of the residual stream; embeddings start from N(0, 1/d_model).
        n_layers: Tilelli blocks.
        dropout: on the embedding and on the mixed output of each block.
        position: ``none`` tells positions by order alone and reads any length; ``learned`` adds an embedding.
        block_size: longest context with learned positions; taken from the data.
        bank_choice: who chooses the bank: the ``router``, or for controls a ``hash`` of the token, a ``random`` draw
            that is fixed for each position and layer, or the ``position`` modulo N; the path weight stays the router's.
        aux_weight: factor on the sum of the blocks' auxiliary losses.
        block: options of :class:`TilelliBlock`.

    Raises:
        ValueError: an argument is out of range; the message names every such argument.
    """

    can_step = True
    can_capture_after_step = True

    def __init__(
        self,
        vocab_size: PositiveInt,
        d_model: PositiveInt = 128,
        n_layers: PositiveInt = 4,
        dropout: Probability = 0.0,
        position: Literal["none", "learned"] = "none",
        block_size: Annotated[PositiveInt | None, Needs(position="learned")] = None,
        bank_choice: Annotated[
            Literal["router", "hash", "random", "position"], Needs(n_banks=SEVERAL)
        ] = "router",
        aux_weight: NonNegativeFloat = 1.0,
        **block: Any,
    ):
        super().__init__()
        self.dropout = dropout
        self.aux_weight = aux_weight
        self.bank_choice = bank_choice
        blocks = [TilelliBlock(d_model, dropout=dropout, **block) for _ in range(n_layers)]
        self.n_banks = blocks[0].n_banks
        self.pathway_names = blocks[0].pathway_names
        self.losses = blocks[0].losses
        self.tok_emb = Embedding(vocab_size, d_model)
        nn.init.normal_(self.tok_emb.weight, std=d_model**-0.5)
        self.blocks = nn.ModuleList(blocks)
        self.norm_f = LayerNorm(d_model, for_products=True)
        self.head = TernaryLinear(d_model, vocab_size, block["quantize"])
        self.pos_emb: nn.Embedding | None = None
        if position == "learned" and block_size is not None:
            self.max_context = block_size
            self.pos_emb = nn.Embedding(block_size, d_model)
            nn.init.normal_(self.pos_emb.weight, std=d_model**-0.5)

    @classmethod
    def with_defaults(cls, init_args: Mapping[str, Any]) -> dict[str, Any]:
        """See :meth:`LanguageModel.with_defaults`; without learned positions the block size is the data's alone."""
        arguments = super().with_defaults(init_args)
        return arguments if arguments["position"] == "learned" else arguments | {"block_size": None}

    @staticmethod
    def conflicts(given: Given) -> Iterator[tuple[str, str]]:
        if given.position == "learned" and given.block_size is None:
            yield "block_size", "learned positions need one"
        yield from TilelliBlock.conflicts(given)

    @staticmethod
    def without_effect(given: Given) -> Iterator[tuple[str, str]]:
        yield from TilelliBlock.without_effect(given)
        if given.bank_choice != "router" and given.balance == "bias":
            yield "balance", f"with bank_choice: {given.bank_choice}, which asks no router"
        losses = ("router_z_loss", "pathway_balance")
        has_bank_loss = given.n_banks > 1 and given.balance in ("original", "switch")
        if given.aux_weight == 0:
            for name in (*losses, *(("balance",) if given.balance == "switch" else ())):
                yield name, "with aux_weight: 0"
        elif not has_bank_loss and not any(vars(given)[name] > 0 for name in losses):
            yield "aux_weight", "without an auxiliary loss: no balance of several banks, none of the router"

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> LanguageModelOutput:
        """See :meth:`LanguageModel.forward`; ``routing`` holds a :class:`BankRouting` per block.

        Raises:
            ValueError: positions are learned and T is beyond ``block_size``.
        """
        x = F.dropout(self.embed(idx), self.dropout, self.training)  # (B, T, D)
        routing: list[BankRouting] = []
        for layer, block in enumerate(self.blocks):
            x, decided = block(x, bank=self._bank(layer, idx))
            routing.append(decided)
        logits = tap(self, "logits", self.head(tap(self, "final", self.norm_f(x))))  # (B, T, V)
        aux_loss = self.auxiliary_losses(_stacked(routing, "auxiliary_means"))
        return LanguageModelOutput(logits, next_token_loss(logits, targets), aux_loss, routing)

    def prefill(self, idx: Tensor) -> tuple[Tensor, TilelliCache]:
        cache = TilelliCache(self.head.effective_weight(), [BlockState() for _ in self.blocks])
        return self._read(idx, cache), cache

    def step(self, token: Tensor, cache: TilelliCache) -> Tensor:
        return self._read(token.unsqueeze(1), cache)

    def _read(self, idx: Tensor, cache: TilelliCache) -> Tensor:
        """Logits ``(B, V)`` after the next tokens ``(B, T)`` of each row."""
        x, start = self.embed(idx, cache.length), cache.length
        cache.length += idx.shape[1]
        for layer, (block, state) in enumerate(zip(self.blocks, cache.blocks, strict=True)):
            x, _ = block(x, state, bank=self._bank(layer, idx, start))
        return F.linear(self.norm_f(x[:, -1]), cache.head_weight)

    def state_size(self, n_tokens: int) -> int:
        """See :meth:`LanguageModel.state_size`: what the pathways remember, of which the sparse one alone grows."""
        kept = n_tokens if self.max_context is None else min(n_tokens, self.max_context)
        return sum(block.state_size(kept) for block in self.tilelli_blocks)

    @torch.no_grad()
    def infer(self, idx: Tensor) -> Tensor:
        """Logits ``(B, T, V)`` of :meth:`forward` in evaluation, with what ``skip_threshold`` allows left out.

        Args:
            idx: ``(B, T)`` int64.

        Raises:
            ValueError: see :meth:`forward`.
        """
        x = self.embed(idx)
        for layer, block in enumerate(self.blocks):
            x, _ = block(x, skip=True, bank=self._bank(layer, idx))
        return self.head.infer(self.norm_f(x))

    def _bank(self, layer: int, idx: Tensor, start: int = 0) -> Tensor | None:
        """The bank ``(B, T)`` of each token where no router chooses it."""
        if self.bank_choice == "router" or self.n_banks == 1:
            return None
        return banks(self.bank_choice, idx, start, layer, self.tok_emb.num_embeddings, self.n_banks)

    def embed(self, idx: Tensor, start: int = 0) -> Tensor:
        """What the first block reads, ``(B, T, D)``, before dropout.

        Args:
            idx: ``(B, T)`` int64.
            start: position of the first token.

        Raises:
            ValueError: positions are learned and ``start + T`` is beyond ``block_size``.
        """
        x = tap(self, "embed", self.tok_emb(idx))
        if self.pos_emb is None:
            return x
        end = start + idx.shape[1]
        if end > self.pos_emb.num_embeddings:
            raise ValueError(
                f"a context of {end} tokens: this network reads at most block_size = {self.max_context}"
            )
        return x + tap(self, "pos_embed", self.pos_emb(torch.arange(start, end, device=idx.device)))

    def flops_per_token(self, block_size: int) -> float:
        """Training FLOPs of one token: 2 per multiply-add forward, 4 backward; a token pays for its own banks only.

        Args:
            block_size: T; a query is scored against (T + 1) / 2 positions on average.
        """
        V, D = self.tok_emb.weight.shape
        per_block = sum(block.multiply_adds_per_token((block_size + 1) / 2) for block in self.tilelli_blocks)
        return 6.0 * (per_block + V * D)

    @property
    def tilelli_blocks(self) -> list[TilelliBlock]:
        """What the entries of ``blocks`` are or wrap, first to last."""
        return modules_of(self.blocks, TilelliBlock)

    def is_matrix(self, name: str, parameter: nn.Parameter) -> bool:
        """A stack of banks is what one bank is: the state pathway's are vectors, all others matrices."""
        owner = self.get_submodule(name.rpartition(".")[0])
        return parameter.dim() >= 2 and not isinstance(owner, DiagonalSSM)

    def is_hidden_matrix(self, name: str, parameter: nn.Parameter) -> bool:
        """Of the blocks' matrices those that mix features, which the taps of a channel do not."""
        owner = self.get_submodule(name.rpartition(".")[0])
        return super().is_hidden_matrix(name, parameter) and not isinstance(owner, TernaryCausalConv1d)

    def auxiliary_means(self, output: LanguageModelOutput) -> Tensor | None:
        """What the losses of all blocks are functions of, ``(layers, M)``; None without such a loss."""
        means = _stacked(output.routing, "auxiliary_means")
        return means if means.shape[-1] > 0 else None

    def auxiliary_losses(self, means: Tensor) -> Tensor:
        """``aux_weight`` times the sum of the blocks' losses."""
        return self.aux_weight * self.losses.total(means).sum()

    def step_sums(self) -> list[Tensor]:
        """With ``balance="bias"`` the tokens of each bank, ``(P, N)`` for each block."""
        return [block.bank_count for block in self.tilelli_blocks if block.bank_count is not None]

    def after_optimizer_step(self, step: int) -> None:
        """With ``balance="bias"`` moves the bias of each bank against its load."""
        for block in self.tilelli_blocks:
            block.after_optimizer_step()

    def running_state(self) -> list[Tensor]:
        """With ``balance="bias"`` the biases, ``(P, N)`` for each block."""
        return [block.router_bias for block in self.tilelli_blocks if block.router_bias is not None]

    def measures(self, output: LanguageModelOutput) -> Mapping[str, Measure]:
        """Pathway shares and router entropy of each layer; with several banks their load and probability."""
        weights = _stacked(output.routing, "pathway_weights").detach()  # (layers, B, T, P)
        entropy = pathway_entropy(_stacked(output.routing, "router_weights").detach())  # (layers, B, T)
        layer, pathway, bank = Axis("layer"), Axis("pathway", self.pathway_names), Axis("bank")
        measures = {
            "pathway_share": Measure(
                weights.mean((1, 2)),
                (layer, pathway),
                "share",
                meaning="weight that tokens give each pathway, mean over the tokens of a step",
            ),
            "router_entropy": Measure(
                entropy.mean((1, 2)),
                (layer,),
                "level",
                unit="nats",
                meaning="how undecided a token's router is between the pathways; 0 where it takes one alone",
                maximum=math.log(len(self.pathway_names)),
            ),
        }
        if self.n_banks > 1:
            load = bank_load(_stacked(output.routing, "bank_index"), weights, self.n_banks, (1, 2))
            probability = _stacked(output.routing, "bank_probability").detach()
            uniform = probability.new_tensor(1 / (len(self.pathway_names) * self.n_banks))
            axes = (layer, pathway, bank)
            measures["bank_load"] = Measure(
                load, axes, "count", reduce="sum", meaning="tokens that use each bank of each pathway"
            )
            measures["bank_probability"] = Measure(
                probability,
                axes,
                "share",
                target=uniform,
                meaning="probability of each bank of each pathway, mean over the tokens of a step",
            )
        return measures

    def token_measures(self, output: LanguageModelOutput) -> Mapping[str, TokenMeasure]:
        """Of each token its heaviest pathway, the entropy of its router, each pathway's weight and bank."""
        weights = _stacked(output.routing, "pathway_weights").detach()  # (layers, B, T, P)
        router_weights = _stacked(output.routing, "router_weights").detach()
        found = {
            "pathway": TokenMeasure(
                weights.argmax(-1),
                self.pathway_names,
                meaning="the pathway that weighs most in what the layer adds",
            ),
            "router entropy": TokenMeasure(
                pathway_entropy(router_weights),
                unit="nats",
                meaning="how undecided the router is between the pathways; 0 where it takes one alone",
            ),
        }
        for p, name in enumerate(self.pathway_names):
            found[f"weight of {name}"] = TokenMeasure(
                weights[..., p], meaning=f"weight of the {name} pathway in what the layer adds, from 0 to 1"
            )
        if self.n_banks > 1:
            banks = _stacked(output.routing, "bank_index")
            labels = tuple(f"bank {number}" for number in range(self.n_banks))
            for p, name in enumerate(self.pathway_names):
                found[f"bank of {name}"] = TokenMeasure(
                    banks[..., p],
                    labels,
                    meaning=f"set of weights that the {name} pathway uses for the token",
                )
        return found

    def ternary_weights(self) -> Mapping[str, TernaryWeight]:
        """The trits of every quantised weight; with ``hadamard``, of router and dense pathway those of WH."""
        found = {}
        for name, module in self.named_modules():
            form = module.ternary_form() if isinstance(module, QuantisedWeight) else None
            if form is not None:
                layer = int(name.split(".")[1]) if name.startswith("blocks.") else None
                found[f"{name}.weight"] = TernaryWeight(*form, layer)
        return found


def _stacked(routing: list[BankRouting], name: str) -> Tensor:
    return torch.stack([getattr(decided, name) for decided in routing])
