"""Reference forms of the ternary quantisers."""

import torch
from torch import Tensor


def ternary(weight: Tensor, dim: tuple[int, ...]) -> Tensor:
    """Ternary weights with one scale over the dimensions ``dim``; see :func:`app.ops.ternary.ternary`."""
    scale = weight.detach().abs().mean(dim, keepdim=True).clamp(min=1e-5)
    quantised = scale * (weight.detach() / scale).round().clamp(-1, 1)
    return quantised + (weight - weight.detach())


def learned_step_ternary(weight: Tensor, step: Tensor) -> Tensor:
    """Ternary weights with learned scales; see :func:`app.ops.ternary.learned_step_ternary`."""
    group_size = weight.numel() // step.numel()
    # The value of the step in use, with a gradient that reaches the parameter scaled, clamped or not.
    factor = group_size**-0.5
    in_use = step.detach().clamp(min=1e-5) + factor * (step - step.detach())
    ratio = weight / in_use.detach()
    inside = ratio.detach().abs() < 1
    rounded = ratio.detach().clamp(-1, 1).round()
    slope = torch.where(inside, rounded - ratio.detach(), ratio.detach().sign())
    gradient_of_step = slope * (in_use - in_use.detach())
    gradient_of_weight = torch.where(inside, weight - weight.detach(), 0)
    return in_use.detach() * rounded + gradient_of_step + gradient_of_weight
