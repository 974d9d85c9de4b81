"""The Tilelli language model."""

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.models.language_model import LanguageModel, next_token_loss
from app.models.tilelli.balance import Balance
from app.models.tilelli.block import TilelliBlock
from app.models.tilelli.parts import DiagonalSSM, TernaryCausalConv1d, TernaryLinear
from app.models.tilelli.recurrent import TilelliCache
from app.models.tilelli.routing import BankRouting, bank_load, pathway_entropy
from app.models.tilelli.weights import QuantisedWeight
from app.records import Axis, LanguageModelOutput, Measure, TernaryWeight, TokenMeasure

BLOCK_ARGUMENTS = frozenset(inspect.signature(TilelliBlock).parameters)


class TilelliLM(LanguageModel):
    """Token embedding, Tilelli blocks, LayerNorm, ternary head.

    Args:
        vocab_size: number of token numbers.
        d_model: width; embeddings start from N(0, 1/d_model).
        n_layers: number of blocks.
        dropout: probability, on the embedding and on the mixed output of each block.
        d_head: see :class:`TilelliBlock`, as for all that follows up to ``path_norm``.
        kernel_size: taps of the local pathway.
        wide_kernel_size: taps of the wide pathway.
        top_k: positions that the sparse pathway keeps per query.
        pathways: 5 or 3.
        n_banks: copies of each pathway's weights.
        skip_threshold: pathway weight below which :meth:`infer` skips.
        skip_mode: ``per_call`` or ``per_token``.
        quantize: whether the weights of blocks and head are ternary; the head always has one scale.
        per_row: a ternary scale per output row.
        hadamard: quantise router and dense pathway in the Walsh–Hadamard basis.
        lsq: learn the ternary scales.
        dense_expand: hidden width of the dense pathway over ``d_model``.
        fp_attention: leave the sparse pathway's weights unquantised.
        top_k_routing: router entries that a token keeps; 0 keeps all.
        bank_gate: ``sum`` or ``bank``.
        balance: ``original``, ``switch``, ``bias`` or ``none``.
        state_init: ``original`` or ``unit``.
        router_z_loss: weight on the mean squared logsumexp of the router's logits.
        router_noise: scale of Gumbel noise on the router's logits in training.
        pathway_balance: weight on the squared deviation of pathway shares from uniform.
        path_norm: RMSNorm on each pathway's output.
        position: ``none`` tells positions by order alone and reads any length; ``learned`` adds an embedding.
        block_size: longest context of ``position="learned"``; not used without.
        aux_weight: weight of the blocks' auxiliary losses.

    Raises:
        ValueError: an argument is out of range; the message names every such argument.
    """

    can_step = True

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        n_layers: int,
        dropout: float = 0.0,
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
        position: Literal["none", "learned"] = "none",
        block_size: int | None = None,
        aux_weight: float = 1.0,
    ):
        block: dict[str, Any] = {name: value for name, value in locals().items() if name in BLOCK_ARGUMENTS}
        super().__init__()
        counts = {"vocab_size": vocab_size, "n_layers": n_layers}
        problems = [f"{name} = {count}: must be at least 1" for name, count in counts.items() if count < 1]
        if not 0 <= aux_weight < float("inf"):
            problems.append(f"aux_weight = {aux_weight}: must be finite and at least 0")
        if position not in ("none", "learned"):
            problems.append(f"position = {position}: must be one of none, learned")
        if position == "learned" and (block_size is None or block_size < 1):
            problems.append(f"block_size = {block_size}: learned positions need at least 1")
        problems += TilelliBlock.problems(**block)
        if problems:
            raise ValueError("\n".join(problems))
        self.dropout = dropout
        self.aux_weight = aux_weight
        self.n_banks = n_banks
        blocks = [TilelliBlock(**block) for _ in range(n_layers)]
        self.pathway_names = blocks[0].pathway_names
        self.tok_emb = nn.Embedding(vocab_size, d_model)
        nn.init.normal_(self.tok_emb.weight, std=d_model**-0.5)
        self.blocks = nn.ModuleList(blocks)
        self.norm_f = nn.LayerNorm(d_model)
        self.head = TernaryLinear(d_model, vocab_size, quantize)
        self.pos_emb: nn.Embedding | None = None
        if position == "learned" and block_size is not None:
            self.max_context = block_size
            self.pos_emb = nn.Embedding(block_size, d_model)
            nn.init.normal_(self.pos_emb.weight, std=d_model**-0.5)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> LanguageModelOutput:
        """See :meth:`LanguageModel.forward`; ``routing`` holds a :class:`BankRouting` per block.

        Raises:
            ValueError: positions are learned and T is beyond ``block_size``.
        """
        x = F.dropout(self.embed(idx), self.dropout, self.training)  # (B, T, D)
        routing: list[BankRouting] = []
        for block in self.blocks:
            x, decided = block(x)
            routing.append(decided)
        logits = self.head(self.norm_f(x))  # (B, T, V)
        aux_loss = self.auxiliary_losses(_stacked(routing, "auxiliary_means"))
        return LanguageModelOutput(logits, next_token_loss(logits, targets), aux_loss, routing)

    def prefill(self, idx: Tensor) -> tuple[Tensor, TilelliCache]:
        """See :meth:`LanguageModel.prefill`."""
        cache = TilelliCache(self, idx)
        return cache.logits, cache

    def step(self, token: Tensor, cache: TilelliCache) -> Tensor:
        """See :meth:`LanguageModel.step`."""
        return cache.step(token)

    @torch.no_grad()
    def infer(self, idx: Tensor) -> Tensor:
        """Logits ``(B, T, V)`` of :meth:`forward` in evaluation, with what ``skip_threshold`` allows left out.

        Args:
            idx: ``(B, T)`` int64.

        Raises:
            ValueError: see :meth:`forward`.
        """
        x = self.embed(idx)
        for block in self.tilelli_blocks:
            x = block.infer(x)
        return self.head.infer(self.norm_f(x))

    def embed(self, idx: Tensor, start: int = 0) -> Tensor:
        """What the first block reads, ``(B, T, D)``, before dropout.

        Args:
            idx: ``(B, T)`` int64.
            start: position of the first token.

        Raises:
            ValueError: positions are learned and ``start + T`` is beyond ``block_size``.
        """
        x: Tensor = self.tok_emb(idx)
        if self.pos_emb is None:
            return x
        end = start + idx.shape[1]
        if end > self.pos_emb.num_embeddings:
            raise ValueError(
                f"a context of {end} tokens: this network reads at most block_size = {self.max_context}"
            )
        return x + self.pos_emb(torch.arange(start, end, device=idx.device))

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
        """The blocks, first to last."""
        return [block for block in self.blocks if isinstance(block, TilelliBlock)]

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
        return self.aux_weight * self.tilelli_blocks[0].losses.total(means).sum()

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
