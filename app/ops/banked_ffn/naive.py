"""Reference form of the banked feed-forward network: every bank on every token."""

import torch
import torch.nn.functional as F
from torch import Tensor

from app.ops.banks import read_bank


def banked_ffn(h: Tensor, up: Tensor, down: Tensor, bank: Tensor) -> Tensor:
    """Two-layer network; see :func:`app.ops.banked_ffn.banked_ffn`."""
    y = torch.stack([F.gelu(h @ w_up.T) @ w_down.T for w_up, w_down in zip(up, down, strict=True)])
    return read_bank(y, bank)
