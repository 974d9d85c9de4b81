"""Reference form of the banked diagonal state space: a convolution with T taps, every bank on every token."""

import torch
import torch.nn.functional as F
from torch import Tensor

from app.ops.banks import read_bank


def banked_diagonal_scan(
    h: Tensor, decay: Tensor, input_gain: Tensor, output_gain: Tensor, bank: Tensor
) -> Tensor:
    """Diagonal linear recurrence; see :func:`app.ops.banked_diagonal_scan.banked_diagonal_scan`."""
    n_steps, n_channels = h.shape[1:]
    padded = F.pad(h.transpose(1, 2), (n_steps - 1, 0))
    lag = torch.arange(n_steps - 1, -1, -1, device=h.device)
    responses = (output_gain * input_gain).unsqueeze(-1) * decay.unsqueeze(-1) ** lag
    y = torch.stack([F.conv1d(padded, taps.unsqueeze(1), groups=n_channels) for taps in responses])
    return read_bank(y.transpose(2, 3), bank)
