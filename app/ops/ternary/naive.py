"""Reference form of the ternary quantiser."""

from torch import Tensor


def ternary(weight: Tensor, dim: tuple[int, ...]) -> Tensor:
    """Ternary weights with one scale over the dimensions ``dim``; see :func:`app.ops.ternary.ternary`."""
    scale = weight.detach().abs().mean(dim, keepdim=True).clamp(min=1e-5)
    quantised = scale * (weight.detach() / scale).round().clamp(-1, 1)
    return quantised + (weight - weight.detach())
