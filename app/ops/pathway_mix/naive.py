"""Reference form of the mixture: one product and one sum after the other."""

from collections.abc import Sequence

import torch
from torch import Tensor


def pathway_mix(weights: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """``Σ_p w_p · y_p``; see :func:`app.ops.pathway_mix.pathway_mix`."""
    mixed = torch.zeros_like(outputs[0])
    for p, output in enumerate(outputs):
        mixed = mixed + weights[..., p, None] * output
    return mixed
