"""GPT-2-style transformer (Radford et al. 2019), the baseline that every architecture is held against.

Shape suffixes: B batch, T sequence, D width, H heads, d head width, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.models.attention import SoftmaxAttention
from app.models.gpt.recurrent import GPTCache
from app.models.language_model import LanguageModel, next_token_loss
from app.models.layers import initial_std, transformer_flops
from app.records import LanguageModelOutput


class CausalSelfAttention(nn.Module):
    """Multi-head softmax attention over positions ≤ t, ``(B, T, D) → (B, T, D)``."""

    def __init__(self, d_model: int, n_heads: int, dropout: float, bias: bool):
        super().__init__()
        self.n_heads = n_heads
        self.dropout = dropout
        self.has_bias = bias
        self.q_proj = nn.Linear(d_model, d_model, bias=bias)
        self.k_proj = nn.Linear(d_model, d_model, bias=bias)
        self.v_proj = nn.Linear(d_model, d_model, bias=bias)
        self.o_proj = nn.Linear(d_model, d_model, bias=bias)
        self.core = SoftmaxAttention()

    def forward(self, x: Tensor) -> Tensor:
        """Mix positions; the residual dropout is applied here."""
        q, k, v = (
            proj(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # (B, H, T, d)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = self.core(q, k, v, self.dropout if self.training else 0.0)
        y = self.o_proj(y.transpose(1, 2).flatten(2))  # (B, T, D)
        return F.dropout(y, self.dropout, self.training)


class MLP(nn.Module):
    """Feed-forward network, four times as wide inside, with exact GELU."""

    def __init__(self, d_model: int, dropout: float, bias: bool):
        super().__init__()
        self.dropout = dropout
        self.fc = nn.Linear(d_model, 4 * d_model, bias=bias)
        self.proj = nn.Linear(4 * d_model, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, T, D) → (B, T, D)``; the residual dropout is applied here."""
        return F.dropout(self.proj(F.gelu(self.fc(x))), self.dropout, self.training)


class GPTBlock(nn.Module):
    """Pre-norm transformer block: attention, then feed-forward, each added to the residual stream."""

    def __init__(self, d_model: int, n_heads: int, dropout: float, bias: bool):
        super().__init__()
        self.ln1 = nn.LayerNorm(d_model)
        self.attn = CausalSelfAttention(d_model, n_heads, dropout, bias)
        self.ln2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model, dropout, bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, T, D) → (B, T, D)``."""
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class GPT(LanguageModel):
    """Transformer with learned positions.

    Weights start from N(0, 0.02²), the two projections onto the residual stream of each block from
    N(0, 0.02² / (2·n_layers)), so that the stream's variance does not grow with depth.

    Args:
        vocab_size: number of token numbers.
        block_size: longest context.
        n_layers: number of blocks.
        n_heads: attention heads; divides ``d_model``.
        d_model: width.
        dropout: probability, on the embedding, the attention weights and each branch.
        bias: whether the linear layers of the blocks have one (LayerNorms always have).
        tie_weights: whether the output projection is the token embedding.

    Raises:
        ValueError: an argument is out of range; the message names every such argument.
    """

    can_step = True

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        n_layers: int,
        n_heads: int,
        d_model: int,
        dropout: float = 0.0,
        bias: bool = False,
        tie_weights: bool = True,
    ):
        super().__init__()
        counts = {
            "vocab_size": vocab_size,
            "block_size": block_size,
            "n_layers": n_layers,
            "n_heads": n_heads,
            "d_model": d_model,
        }
        problems = [f"{name} = {count}: must be at least 1" for name, count in counts.items() if count < 1]
        if not problems and d_model % n_heads:
            problems.append(f"n_heads = {n_heads}: must divide d_model = {d_model}")
        if not 0 <= dropout < 1:
            problems.append(f"dropout = {dropout}: must lie in [0, 1)")
        if problems:
            raise ValueError("\n".join(problems))
        self.max_context = block_size
        self.dropout = dropout
        self.tok_emb = nn.Embedding(vocab_size, d_model)
        self.pos_emb = nn.Embedding(block_size, d_model)
        self.blocks = nn.ModuleList(GPTBlock(d_model, n_heads, dropout, bias) for _ in range(n_layers))
        self.ln_f = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocab_size, bias=False)
        if tie_weights:
            self.head.weight = self.tok_emb.weight
        self._initialise(n_layers)

    def _initialise(self, n_layers: int) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(parameter, std=initial_std(name, n_layers))
            elif name.endswith(".bias"):
                nn.init.zeros_(parameter)

    def flops_per_token(self, block_size: int) -> float:
        """Training FLOPs of one token, see :func:`app.models.layers.transformer_flops`."""
        V, D = self.tok_emb.weight.shape
        return transformer_flops(len(self.blocks), D, V, block_size)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> LanguageModelOutput:
        """See :meth:`LanguageModel.forward`.

        Raises:
            ValueError: T is beyond ``block_size``.
        """
        x = F.dropout(self.embed(idx), self.dropout, self.training)  # (B, T, D)
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.ln_f(x))  # (B, T, V)
        return LanguageModelOutput(
            logits=logits,
            loss=next_token_loss(logits, targets),
            aux_loss=torch.zeros((), device=logits.device),
            routing=[],
        )

    def prefill(self, idx: Tensor) -> tuple[Tensor, GPTCache]:
        """See :meth:`LanguageModel.prefill`; the cache holds ``block_size`` positions."""
        cache = GPTCache(self)
        return cache.read(idx), cache

    def step(self, token: Tensor, cache: GPTCache) -> Tensor:
        """See :meth:`LanguageModel.step`; at most ``block_size`` positions in all."""
        return cache.read(token.unsqueeze(1))

    @property
    def gpt_blocks(self) -> list[GPTBlock]:
        """The blocks, first to last."""
        return [block for block in self.blocks if isinstance(block, GPTBlock)]

    def embed(self, idx: Tensor, start: int = 0) -> Tensor:
        """What the first block reads, ``(B, T, D)``, before dropout.

        Args:
            idx: ``(B, T)`` int64.
            start: position of the first token.

        Raises:
            ValueError: ``start + T`` is beyond ``block_size``.
        """
        end = start + idx.shape[1]
        if end > self.pos_emb.num_embeddings:
            raise ValueError(
                f"a context of {end} tokens: this network reads at most block_size = {self.max_context}"
            )
        x: Tensor = self.tok_emb(idx) + self.pos_emb(torch.arange(start, end, device=idx.device))
        return x
