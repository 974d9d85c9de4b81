"""GPT-2-style transformer (Radford et al. 2019), the baseline that every architecture is held against.

Shape suffixes: B batch, T sequence, D width, H heads, d head width, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.models.attention import KeyValueCache, SoftmaxAttention
from app.models.language_model import LanguageModel, next_token_loss
from app.records import LanguageModelOutput

INITIAL_STD = 0.02  # GPT-2's


class CausalSelfAttention(nn.Module):
    """Multi-head softmax attention over positions ≤ t, ``(B, T, D) → (B, T, D)``."""

    def __init__(self, d_model: int, n_heads: int, dropout: float, bias: bool):
        super().__init__()
        self.n_heads = n_heads
        self.dropout = dropout
        self.q_proj = nn.Linear(d_model, d_model, bias=bias)
        self.k_proj = nn.Linear(d_model, d_model, bias=bias)
        self.v_proj = nn.Linear(d_model, d_model, bias=bias)
        self.o_proj = nn.Linear(d_model, d_model, bias=bias)
        self.core = SoftmaxAttention()

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Mix positions, those in the cache before those of ``x``; the residual dropout is applied here."""
        q, k, v = (
            proj(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # (B, H, T, d)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if cache is not None:
            k, v = cache.append(k, v)
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

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """``(B, T, D) → (B, T, D)``, positions in the cache before those of ``x``."""
        x = x + self.attn(self.ln1(x), cache)
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
                onto_residual = name.endswith(("o_proj.weight", "mlp.proj.weight"))
                std = INITIAL_STD / (2 * n_layers) ** 0.5 if onto_residual else INITIAL_STD
                nn.init.normal_(parameter, std=std)
            elif name.endswith(".bias"):
                nn.init.zeros_(parameter)

    def flops_per_token(self, block_size: int) -> float:
        """Training FLOPs of one token: 2 per multiply-add forward, 4 backward (Kaplan et al. 2020).

        Args:
            block_size: T; a query meets (T + 1) / 2 keys and values on average.
        """
        V, D = self.tok_emb.weight.shape
        return 6.0 * (len(self.blocks) * (12 * D * D + (block_size + 1) * D) + V * D)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> LanguageModelOutput:
        """See :meth:`LanguageModel.forward`.

        Raises:
            ValueError: T is beyond ``block_size``.
        """
        logits = self.head(self._hidden(idx))  # (B, T, V)
        return LanguageModelOutput(
            logits=logits,
            loss=next_token_loss(logits, targets),
            aux_loss=torch.zeros((), device=logits.device),
            routing=[],
        )

    def prefill(self, idx: Tensor) -> tuple[Tensor, list[KeyValueCache]]:
        """See :meth:`LanguageModel.prefill`; a cache of ``block_size`` positions per block."""
        assert self.max_context is not None
        caches = [KeyValueCache(self.max_context) for _ in self.blocks]
        return self.head(self._hidden(idx, caches)[:, -1]), caches

    def step(self, token: Tensor, cache: list[KeyValueCache]) -> Tensor:
        """See :meth:`LanguageModel.step`; at most ``block_size`` positions in all."""
        logits: Tensor = self.head(self._hidden(token[:, None], cache)[:, -1])
        return logits

    def _hidden(self, idx: Tensor, caches: list[KeyValueCache] | None = None) -> Tensor:
        """What the head reads, ``(B, T, D)``."""
        start = 0 if caches is None else caches[0].length
        end = start + idx.shape[1]
        if self.max_context is not None and self.max_context < end:
            raise ValueError(
                f"a context of {end} tokens: this network reads at most block_size = {self.max_context}"
            )
        position = torch.arange(start, end, device=idx.device)
        x = self.tok_emb(idx) + self.pos_emb(position)  # (B, T, D)
        x = F.dropout(x, self.dropout, self.training)
        for i, block in enumerate(self.blocks):
            x = block(x, None if caches is None else caches[i])
        hidden: Tensor = self.ln_f(x)
        return hidden
