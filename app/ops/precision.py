"""The number format that an operator computes in."""

import torch
from torch import Tensor


def matmul_dtype(x: Tensor) -> torch.dtype:
    """The format for matrix products: autocast's inside its context, that of ``x`` elsewhere."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """The format for sums over time and for softmax: at least fp32."""
    return torch.promote_types(x.dtype, torch.float32)
