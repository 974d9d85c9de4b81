"""Weights that are kept in full precision and used as trits.

Shape suffixes: N banks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app import options
from app.ops.hadamard import hadamard as rotate
from app.ops.ternary import learned_step_ternary, learned_step_trits, ternary, trits
from app.options import Given


class TilelliPart(nn.Module):
    """A part of a block, which can be called by itself."""

    def infer(self, *inputs: Any) -> Tensor:
        """What calling the part returns, without a gradient."""
        with torch.no_grad():
            output: Tensor = self(*inputs)
        return output


class QuantisedWeight(TilelliPart):
    """One weight, or a stack of banks, with the form in which it is used.

    The scale of the trits is the mean magnitude (BitNet b1.58, arXiv 2402.17764) or, with ``lsq``, a parameter
    ``step`` (arXiv 1902.08153) that starts at twice that mean.

    Args:
        weight: initial values; the last axis is that of the inputs, or the taps of a convolution.
        banked: whether axis 0 counts banks, each of which has its own scale.
        quantize: False uses the weight itself.
        per_row: a scale for each entry of all axes but the last, in place of one per bank.
        hadamard: quantise in the basis of the Walsh–Hadamard transform H over the last axis, ``Q(WH)Hᵀ``.
        lsq: learn the scales.

    Raises:
        ValueError: ``lsq`` where nothing is quantised, or beside ``per_row``.
    """

    @options.checked
    def __init__(
        self,
        weight: Tensor,
        banked: bool,
        quantize: bool = True,
        per_row: bool = False,
        hadamard: bool = False,
        lsq: bool = False,
    ):
        super().__init__()
        self.quantize = quantize
        self.hadamard = hadamard
        self.scaled_over = (-1,) if per_row else tuple(range(int(banked), weight.dim()))
        self.weight = nn.Parameter(weight)
        self.step: nn.Parameter | None = None
        if lsq:
            basis = rotate(weight) if hadamard else weight
            self.step = nn.Parameter(2 * basis.abs().mean(self.scaled_over).reshape(-1))  # (N), or (1)

    @staticmethod
    def conflicts(given: Given) -> Iterator[tuple[str, str]]:
        if given.lsq and not given.quantize:
            yield "lsq", "without quantize nothing is quantised and there is no step to learn"
        if given.lsq and given.per_row:
            yield "lsq", "learns one step per weight and bank, where per_row asks for one per row"

    def effective_weight(self) -> Tensor:
        """The weight to compute with, in the shape of ``weight``.

        With ``hadamard`` a layer is ``y = (xH) Q(WH)ᵀ``. Activations are not quantised, so H may as well go
        with the weight, ``y = x (Q(WH) H)ᵀ``: a few thousand rows of it in place of every token.
        """
        if not self.quantize:
            return self.weight
        weight = rotate(self.weight) if self.hadamard else self.weight
        if self.step is None:
            quantised = ternary(weight, self.scaled_over)
        else:
            quantised = learned_step_ternary(weight, self._broadcast(self.step))
        return rotate(quantised) if self.hadamard else quantised

    @torch.no_grad()
    def ternary_form(self) -> tuple[Tensor, Tensor] | None:
        """Trits int8 in the shape of ``weight`` (of WH with ``hadamard``) and their scales, broadcastable to it."""
        if not self.quantize:
            return None
        weight = rotate(self.weight) if self.hadamard else self.weight
        if self.step is None:
            values, scale = trits(weight, self.scaled_over)
        else:
            values, scale = learned_step_trits(weight, self._broadcast(self.step))
        return values.to(torch.int8), scale

    @torch.no_grad()
    def settle(self) -> None:
        """Takes ``weight`` for what it is: scaled trits, of WH with ``hadamard``, which are not quantised again."""
        if self.hadamard:
            self.weight.copy_(rotate(self.weight))
        self.quantize = False
        self.requires_grad_(False)

    def _broadcast(self, step: Tensor) -> Tensor:
        return step.view(-1, *(1,) * (self.weight.dim() - 1))


class TernaryLinear(QuantisedWeight):
    """Linear map with ternary weights, no bias, activations as they come: ``(..., in) → (..., out)``.

    Args:
        in_features: W ~ N(0, 1/in_features).
        out_features: number of outputs.
        quantize: False uses W itself.
        per_row: a scale per output in place of one for all of W.
        hadamard: quantise in the Walsh–Hadamard basis of the inputs.
        lsq: learn the scale, ``step`` ``(1,)``.

    Raises:
        ValueError: see :class:`QuantisedWeight`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        quantize: bool = True,
        per_row: bool = False,
        hadamard: bool = False,
        lsq: bool = False,
    ):
        weight = torch.randn(out_features, in_features) * in_features**-0.5
        super().__init__(weight, False, quantize, per_row, hadamard, lsq)

    def forward(self, x: Tensor) -> Tensor:
        """``x Ŵᵀ``."""
        return F.linear(x, self.effective_weight())


class WeightBank(QuantisedWeight):
    """N weights of one shape; calling it gives the effective ones, ``(N, *shape)``, a ternary scale per bank.

    Args:
        n_banks: N.
        shape: of one weight.
        variance: of the initial normal distribution.
        quantize: False gives the weights themselves.
        per_row: a scale for each entry of all axes but the last.
        hadamard: quantise in the Walsh–Hadamard basis of the last axis.
        lsq: learn the scales, ``step`` ``(N,)``.

    Raises:
        ValueError: see :class:`QuantisedWeight`.
    """

    def __init__(
        self,
        n_banks: int,
        shape: tuple[int, ...],
        variance: float,
        quantize: bool = True,
        per_row: bool = False,
        hadamard: bool = False,
        lsq: bool = False,
    ):
        weight = torch.randn(n_banks, *shape) * variance**0.5
        super().__init__(weight, True, quantize, per_row, hadamard, lsq)

    def forward(self) -> Tensor:
        """The weights to compute with."""
        return self.effective_weight()


@contextmanager
def full_precision(network: nn.Module) -> Iterator[None]:
    """For the time of a ``with`` block, every quantised weight of a network computes with the weight itself."""
    quantised = [
        module for module in network.modules() if isinstance(module, QuantisedWeight) and module.quantize
    ]
    for module in quantised:
        module.quantize = False
    try:
        yield
    finally:
        for module in quantised:
            module.quantize = True
