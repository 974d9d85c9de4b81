"""The Tilelli language model."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.models.language_model import LanguageModel, next_token_loss
from app.models.tilelli.block import BankRouting, TilelliBlock, balance_loss, pathway_entropy
from app.models.tilelli.parts import DiagonalSSM, TernaryLinear
from app.records import Axis, LanguageModelOutput, Measure


class TilelliLM(LanguageModel):
    """Token embedding, Tilelli blocks, LayerNorm, ternary head; no position embedding, any context length.

    Args:
        vocab_size: number of token numbers.
        d_model: width; the embedding starts from N(0, 1/d_model).
        n_layers: number of blocks.
        dropout: probability, on the embedding and on the mixed output of each block.
        d_head: see :class:`TilelliBlock`, as for the following.
        kernel_size: taps of the local pathway.
        wide_kernel_size: taps of the wide pathway.
        top_k: positions that the sparse pathway keeps per query.
        pathways: 5 or 3.
        n_banks: copies of each pathway's weights.
        quantize: whether the weights of blocks and head are ternary.
        dense_expand: hidden width of the dense pathway over ``d_model``.
        aux_weight: weight of the blocks' load-balance losses.

    Raises:
        ValueError: an argument is out of range; the message names every such argument.
    """

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
        quantize: bool = True,
        dense_expand: int = 2,
        aux_weight: float = 1.0,
    ):
        super().__init__()
        counts = {"vocab_size": vocab_size, "n_layers": n_layers}
        problems = [f"{name} = {count}: must be at least 1" for name, count in counts.items() if count < 1]
        if not 0 <= aux_weight < float("inf"):
            problems.append(f"aux_weight = {aux_weight}: must be finite and at least 0")
        block: dict[str, Any] = {
            "d_model": d_model,
            "d_head": d_head,
            "kernel_size": kernel_size,
            "wide_kernel_size": wide_kernel_size,
            "top_k": top_k,
            "pathways": pathways,
            "n_banks": n_banks,
            "dense_expand": dense_expand,
            "dropout": dropout,
        }
        problems += TilelliBlock.problems(**block)
        if problems:
            raise ValueError("\n".join(problems))
        self.dropout = dropout
        self.aux_weight = aux_weight
        self.n_banks = n_banks
        blocks = [TilelliBlock(**block, quantize=quantize) for _ in range(n_layers)]
        self.pathway_names = blocks[0].pathway_names
        self.tok_emb = nn.Embedding(vocab_size, d_model)
        nn.init.normal_(self.tok_emb.weight, std=d_model**-0.5)
        self.blocks = nn.ModuleList(blocks)
        self.norm_f = nn.LayerNorm(d_model)
        self.head = TernaryLinear(d_model, vocab_size, quantize)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> LanguageModelOutput:
        """See :meth:`LanguageModel.forward`; ``routing`` holds a :class:`BankRouting` per block."""
        x = F.dropout(self.tok_emb(idx), self.dropout, self.training)  # (B, T, D)
        routing: list[BankRouting] = []
        for block in self.blocks:
            x, decided = block(x)
            routing.append(decided)
        logits = self.head(self.norm_f(x))  # (B, T, V)
        aux_loss = self.auxiliary_losses(_stacked(routing, "bank_probability"))
        return LanguageModelOutput(logits, next_token_loss(logits, targets), aux_loss, routing)

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

    def auxiliary_means(self, output: LanguageModelOutput) -> Tensor | None:
        """Bank probabilities of all blocks, ``(layers, P, N)``; None with a single bank."""
        return _stacked(output.routing, "bank_probability") if self.n_banks > 1 else None

    def auxiliary_losses(self, means: Tensor) -> Tensor:
        """``aux_weight`` times the sum of the blocks' load-balance losses."""
        return self.aux_weight * balance_loss(means).sum()

    def measures(self, output: LanguageModelOutput) -> Mapping[str, Measure]:
        """Pathway shares and router entropy of each layer; with several banks their load and probability."""
        weights = _stacked(output.routing, "pathway_weights").detach()  # (layers, B, T, P)
        layer, pathway, bank = Axis("layer"), Axis("pathway", self.pathway_names), Axis("bank")
        measures = {
            "pathway_share": Measure(weights.mean((1, 2)), (layer, pathway), "share"),
            "router_entropy": Measure(pathway_entropy(weights).mean((1, 2)), (layer,), "level", unit="nats"),
        }
        if self.n_banks > 1:
            index = _stacked(output.routing, "bank_index")  # (layers, B, T, P)
            chosen = index.unsqueeze(-1) == torch.arange(self.n_banks, device=index.device)
            probability = _stacked(output.routing, "bank_probability").detach()
            uniform = probability.new_tensor(1 / (len(self.pathway_names) * self.n_banks))
            axes = (layer, pathway, bank)
            measures["bank_load"] = Measure(chosen.sum((1, 2)), axes, "count", reduce="sum")
            measures["bank_probability"] = Measure(probability, axes, "share", target=uniform)
        return measures


def _stacked(routing: list[BankRouting], name: str) -> Tensor:
    return torch.stack([getattr(decided, name) for decided in routing])
