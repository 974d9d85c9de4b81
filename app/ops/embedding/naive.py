"""Reference form of the embedding: PyTorch's, whose gradient is one sum over all tokens a row."""

import torch.nn.functional as F
from torch import Tensor


def embedding(idx: Tensor, weight: Tensor) -> Tensor:
    """``weight[idx]``; see :func:`app.ops.embedding.embedding`."""
    return F.embedding(idx, weight)
