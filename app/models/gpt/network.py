"""GPT-2-style transformer (Radford et al. 2019), the baseline that every architecture is held against.

Shape suffixes: B batch, T sequence, D width, H heads, d head width, V vocabulary.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.models.activations import tap
from app.models.attention import KeyValueCache, SoftmaxAttention, key_value_bytes
from app.models.language_model import LanguageModel, next_token_loss
from app.models.layers import Embedding, LayerNorm, initial_std, transformer_flops
from app.options import Given, PositiveInt, Probability
from app.records import LanguageModelOutput


class GPTCache(KeyValueCache):
    """What the attention of one block remembers: keys, values, and the three projections as one.

    Attributes:
        projection: weight ``(3 D, D)`` and bias ``(3 D)`` of queries, keys and values, formed at the first reading.
    """

    projection: tuple[Tensor, Tensor | None] | None = None


class CausalSelfAttention(nn.Module):
    """Multi-head softmax attention over positions ≤ t, ``(B, T, D) → (B, T, D)``."""

    def __init__(self, d_model: int, n_heads: int, dropout: float, bias: bool, head_gates: bool = False):
        super().__init__()
        self.n_heads = n_heads
        self.dropout = dropout
        self.has_bias = bias
        self.q_proj = nn.Linear(d_model, d_model, bias=bias)
        self.k_proj = nn.Linear(d_model, d_model, bias=bias)
        self.v_proj = nn.Linear(d_model, d_model, bias=bias)
        self.o_proj = nn.Linear(d_model, d_model, bias=bias)
        self.gate = nn.Linear(d_model, n_heads, bias=bias) if head_gates else None
        self.core = SoftmaxAttention()

    def forward(self, x: Tensor) -> Tensor:
        """Mix positions; the residual dropout is applied here."""
        q, k, v = (
            proj(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # (B, H, T, d)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k, v = tap(self, "q", q), tap(self, "k", k), tap(self, "v", v)
        z = tap(self, "z", self._gated(self.core(q, k, v, self.dropout if self.training else 0.0), x))
        y = tap(self, "out", self.o_proj(z.transpose(1, 2).flatten(2)))  # (B, T, D)
        return F.dropout(y, self.dropout, self.training)

    def read(self, rows: Tensor, cache: GPTCache, n_rows: int) -> Tensor:
        """Mix the next positions ``(B·T, D)`` of B rows with those in the cache, in evaluation."""
        if cache.projection is None:
            layers = (self.q_proj, self.k_proj, self.v_proj)
            bias = torch.cat([layer.bias for layer in layers]) if self.has_bias else None
            cache.projection = torch.cat([layer.weight for layer in layers]), bias
        # One product in place of three: a single token costs calls rather than arithmetic.
        qkv = F.linear(rows, *cache.projection).view(
            n_rows, -1, 3, self.n_heads, rows.shape[1] // self.n_heads
        )
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()  # (B, H, T, d)
        y = self._gated(self.core(q, *cache.append(k, v)), rows.view(n_rows, -1, rows.shape[1]))
        mixed: Tensor = self.o_proj(y.transpose(1, 2).reshape(rows.shape))
        return mixed

    def _gated(self, y: Tensor, x: Tensor) -> Tensor:
        """What the heads have mixed ``(B, H, T, d)``, each times its gate of the token ``(B, T, D)`` that reads."""
        return y if self.gate is None else y * torch.sigmoid(self.gate(x)).transpose(1, 2).unsqueeze(-1)


class MLP(nn.Module):
    """Feed-forward network: four times as wide inside with exact GELU, or SwiGLU with about as many weights."""

    def __init__(self, d_model: int, dropout: float, bias: bool, swiglu: bool = False):
        super().__init__()
        self.dropout = dropout
        # Three matrices in place of two: two thirds of the width, up to a multiple of 8.
        width = -(-d_model // 3) * 8 if swiglu else 4 * d_model
        self.fc = nn.Linear(d_model, width, bias=bias)
        self.gate = nn.Linear(d_model, width, bias=bias) if swiglu else None
        self.proj = nn.Linear(width, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, T, D) → (B, T, D)``; the residual dropout is applied here."""
        drive = tap(self, "pre", self.fc(x))
        hidden = tap(self, "post", F.gelu(drive) if self.gate is None else F.silu(self.gate(x)) * drive)
        y = tap(self, "out", self.proj(hidden))
        return F.dropout(y, self.dropout) if self.training else y


class GPTBlock(nn.Module):
    """Pre-norm transformer block: attention, then feed-forward, each added to the residual stream."""

    def __init__(
        self, d_model: int, n_heads: int, dropout: float, bias: bool, swiglu: bool, head_gates: bool
    ):
        super().__init__()
        self.ln1 = LayerNorm(d_model, for_products=True)
        self.attn = CausalSelfAttention(d_model, n_heads, dropout, bias, head_gates)
        self.ln2 = LayerNorm(d_model, for_products=True)
        self.mlp = MLP(d_model, dropout, bias, swiglu)

    def forward(self, x: Tensor, cache: GPTCache | None = None) -> Tensor:
        """``(B, T, D) → (B, T, D)``, positions in the cache before those of ``x``."""
        if cache is None:
            x = tap(self, "in", x)
            x = tap(self, "mid", x + self.attn(self.ln1(x)))
            return tap(self, "out", x + self.mlp(self.ln2(x)))
        rows = x.flatten(0, 1)
        rows = rows + self.attn.read(self.ln1(rows), cache, x.shape[0])
        return (rows + self.mlp(self.ln2(rows))).view_as(x)


class GPT(LanguageModel):
    """Transformer with learned positions.

    Weights start from N(0, 0.02²), the two projections onto the residual stream of each block from
    N(0, 0.02² / (2·n_layers)), so that the stream's variance does not grow with depth.

    Args:
        vocab_size: number of tokens that there are; taken from the data.
        block_size: longest context, in tokens; taken from the data.
        n_layers: transformer blocks.
        n_heads: attention heads per block; divides ``d_model``.
        d_model: width of the residual stream.
        dropout: on the embedding, the attention weights and each branch.
        bias: biases in the linear layers of the blocks (LayerNorms always have one).
        tie_weights: one matrix for the token embedding and the output projection.
        swiglu: feed-forward networks are ``W_proj (silu(W_gate x) ⊙ W_fc x)`` (Shazeer 2020, arXiv 2002.05202), 8/3 as
            wide inside: about as many weights as with GELU.
        head_gates: what a head has mixed is multiplied by a sigmoid of the token that reads (Qiu et al. 2025, arXiv
            2505.06708, headwise); all gates start near 1/2.

    Raises:
        ValueError: an argument is out of range; the message names every such argument.
    """

    can_step = True

    def __init__(
        self,
        vocab_size: PositiveInt,
        block_size: PositiveInt,
        n_layers: PositiveInt = 6,
        n_heads: PositiveInt = 6,
        d_model: PositiveInt = 384,
        dropout: Probability = 0.0,
        bias: bool = False,
        tie_weights: bool = True,
        swiglu: bool = False,
        head_gates: bool = False,
    ):
        super().__init__()
        self.max_context = block_size
        self.dropout = dropout
        self.is_gpt2 = not (swiglu or head_gates)
        self.tok_emb = Embedding(vocab_size, d_model)
        self.pos_emb = nn.Embedding(block_size, d_model)
        options = (d_model, n_heads, dropout, bias, swiglu, head_gates)
        self.blocks = nn.ModuleList(GPTBlock(*options) for _ in range(n_layers))
        n_weights = sum(weight.numel() for weight in self.blocks.parameters() if weight.dim() == 2)
        self._n_more_weights = n_weights - 12 * n_layers * d_model**2  # than the blocks of GPT-2 have
        self.ln_f = LayerNorm(d_model, for_products=True)
        self.head = nn.Linear(d_model, vocab_size, bias=False)
        if tie_weights:
            self.head.weight = self.tok_emb.weight
        self._initialise(n_layers)

    @staticmethod
    def conflicts(given: Given) -> Iterator[tuple[str, str]]:
        if given.d_model % given.n_heads:
            yield "n_heads", f"must divide d_model = {given.d_model}"

    def _initialise(self, n_layers: int) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(parameter, std=initial_std(name, n_layers))
            elif name.endswith(".bias"):
                nn.init.zeros_(parameter)

    def flops_per_token(self, block_size: int) -> float:
        """Training FLOPs of one token, see :func:`app.models.layers.transformer_flops`."""
        V, D = self.tok_emb.weight.shape
        return transformer_flops(len(self.blocks), D, V, block_size) + 6.0 * self._n_more_weights

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> LanguageModelOutput:
        """See :meth:`LanguageModel.forward`.

        Raises:
            ValueError: T is beyond ``block_size``.
        """
        x = F.dropout(self.embed(idx), self.dropout, self.training)  # (B, T, D)
        for block in self.blocks:
            x = block(x)
        logits = tap(self, "logits", self.head(tap(self, "final", self.ln_f(x))))  # (B, T, V)
        return LanguageModelOutput(
            logits=logits,
            loss=next_token_loss(logits, targets),
            aux_loss=torch.zeros((), device=logits.device),
            routing=[],
        )

    def prefill(self, idx: Tensor) -> tuple[Tensor, list[GPTCache]]:
        """See :meth:`LanguageModel.prefill`; a cache of ``block_size`` positions per block."""
        caches = [GPTCache(self.pos_emb.num_embeddings) for _ in self.blocks]
        return self._read(idx, caches), caches

    def step(self, token: Tensor, cache: list[GPTCache]) -> Tensor:
        """See :meth:`LanguageModel.step`; at most ``block_size`` positions in all."""
        return self._read(token.unsqueeze(1), cache)

    def state_size(self, n_tokens: int) -> int:
        """See :meth:`LanguageModel.state_size`: keys and values of every block."""
        return key_value_bytes(len(self.blocks), self.tok_emb, n_tokens, self.pos_emb.num_embeddings)

    def _read(self, idx: Tensor, caches: list[GPTCache]) -> Tensor:
        """Logits ``(B, V)`` after the next tokens ``(B, T)`` of each row."""
        x = self.embed(idx, caches[0].length)
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, cache)
        logits: Tensor = self.head(self.ln_f(x[:, -1]))
        return logits

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
        position = torch.arange(start, end, device=idx.device)
        return tap(self, "embed", self.tok_emb(idx)) + tap(self, "pos_embed", self.pos_emb(position))
