"""Reference form of the banked causal convolution: every bank on every token."""

import torch
import torch.nn.functional as F
from torch import Tensor

from app.ops.banks import read_bank


def banked_causal_conv(h: Tensor, weight: Tensor, bank: Tensor) -> Tensor:
    """Depthwise causal convolution; see :func:`app.ops.banked_causal_conv.banked_causal_conv`."""
    n_channels, kernel_size = weight.shape[1:]
    padded = F.pad(h.transpose(1, 2), (kernel_size - 1, 0))
    y = torch.stack([F.conv1d(padded, taps.unsqueeze(1), groups=n_channels) for taps in weight])
    return read_bank(y.transpose(2, 3), bank)
