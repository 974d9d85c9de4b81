"""GPT one token at a time: keys and values of the tokens before, and the step that reads them.

Shape suffixes: B rows, T tokens, D width, H heads, d head width.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from app.models.attention import KeyValueCache

if TYPE_CHECKING:
    from app.models.gpt.network import GPT, GPTBlock


class BlockCache:
    """What one block remembers.

    Args:
        block: in evaluation mode; whatever stands as its attention's ``core`` is used.
        capacity: the most positions that it can hold.
    """

    def __init__(self, block: "GPTBlock", capacity: int):
        self.block = block
        self.positions = KeyValueCache(capacity)
        self.d_head = block.attn.q_proj.out_features // block.attn.n_heads
        # One product in place of three: a single token costs calls rather than arithmetic.
        projections = (block.attn.q_proj, block.attn.k_proj, block.attn.v_proj)
        self.weight = torch.cat([projection.weight for projection in projections])
        self.bias = (
            torch.cat([projection.bias for projection in projections]) if block.attn.has_bias else None
        )

    def read(self, x: Tensor, n_rows: int) -> Tensor:
        """``(B·T, D) → (B·T, D)``, the block's output for the next T positions of B rows."""
        attention, mlp = self.block.attn, self.block.mlp
        qkv = F.linear(self.block.ln1(x), self.weight, self.bias).view(
            n_rows, -1, 3, attention.n_heads, self.d_head
        )
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()  # (B, H, T, d)
        y = attention.core(q, *self.positions.append(k, v))
        x = x + attention.o_proj(y.transpose(1, 2).reshape(x.shape))
        return x + mlp.proj(F.gelu(mlp.fc(self.block.ln2(x))))


class GPTCache:
    """What a GPT remembers of the tokens that it has read.

    Args:
        network: in evaluation mode.

    Attributes:
        length: tokens read so far.
    """

    def __init__(self, network: "GPT"):
        self.network = network
        self.length = 0
        self.blocks = [BlockCache(block, network.pos_emb.num_embeddings) for block in network.gpt_blocks]

    def read(self, idx: Tensor) -> Tensor:
        """Logits ``(B, V)`` after the next tokens ``(B, T)`` of each row.

        Raises:
            ValueError: they are more than ``block_size`` in all.
        """
        x = self.network.embed(idx, self.length)
        self.length += idx.shape[1]
        x = x.flatten(0, 1)
        for block in self.blocks:
            x = block.read(x, idx.shape[0])
        logits: Tensor = self.network.head(self.network.ln_f(x.unflatten(0, idx.shape)[:, -1]))
        return logits
