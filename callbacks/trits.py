"""What one optimizer step did to the ternary weights of a network."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from app.records import TernaryWeight


class TritCounts(NamedTuple):
    """Counts of one step, per ternary weight.

    Attributes:
        names: parameter names, in the network's order.
        layers: the block of each; None outside of the blocks.
        values: ``(n_weights, 5)`` float64 on the device: trits at −1, at 0 and at +1 after the step, mean scale,
            and trits that the step changed.
    """

    names: list[str]
    layers: list[int | None]
    values: Tensor


class TritWatch:
    """Compares the trits before and after each logged optimizer step; other steps cost nothing.

    Both sides of the comparison belong to the same step, so that there is nothing to keep over a resume. Watchers
    of one module share one, see :meth:`of`: trits are read twice per logged step, however many watchers ask.
    """

    _shared: ClassVar[WeakKeyDictionary[LightningModule, "TritWatch"]] = WeakKeyDictionary()

    def __init__(self) -> None:
        self._step = 0  # that both of these belong to
        self._before: dict[str, Tensor] = {}
        self._counts: TritCounts | None = None

    @classmethod
    def of(cls, pl_module: LightningModule) -> "TritWatch":
        """The one of this module."""
        return cls._shared.setdefault(pl_module, cls())

    @classmethod
    def begin(cls, pl_module: LightningModule) -> None:
        """To be called when training begins: forgets the step in which another fit of this module broke off."""
        cls._shared.pop(pl_module, None)

    def before_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """To be called before each micro-batch; keeps the trits that its step starts from, if it is a logged one."""
        module: Any = pl_module
        step = trainer.global_step + 1
        if step == self._step and self._before:
            return  # another watcher has asked
        if not module.is_logged(step) or not hasattr(module.network, "ternary_weights"):
            return
        self._step, self._counts = step, None
        # A network may hand out trits that it keeps and overwrites.
        self._before = {name: weight.trits.clone() for name, weight in _weights(module).items()}

    def after_step(self, pl_module: LightningModule, step: int) -> TritCounts | None:
        """To be called after a logged step, with its number; None where the network has no ternary weights."""
        if step != self._step:
            return None
        if self._before:
            self._counts = self._compare(_weights(pl_module))
            self._before = {}
        return self._counts

    def _compare(self, weights: Mapping[str, TernaryWeight]) -> TritCounts:
        whole, scales = [], []
        for name, weight in weights.items():
            trits = weight.trits
            # Of −1 and 1 together, and the difference: two passes in place of three comparisons and as many sums.
            whole += [trits.count_nonzero(), trits.sum(), (trits != self._before[name]).count_nonzero()]
            scales.append(weight.scale.mean(dtype=torch.float32))
        wide = torch.float32 if whole[0].device.type == "mps" else torch.float64
        used, difference, flips = torch.stack(whole).to(wide).view(-1, 3).unbind(1)
        entries = used.new_tensor([weight.trits.numel() for weight in weights.values()])
        columns = (
            (used - difference) / 2,
            entries - used,
            (used + difference) / 2,
            torch.stack(scales),
            flips,
        )
        layers = [weight.layer for weight in weights.values()]
        return TritCounts(list(weights), layers, torch.stack([column.to(wide) for column in columns], dim=1))


def _weights(module: Any) -> dict[str, TernaryWeight]:
    with torch.no_grad():
        return dict(module.network.ternary_weights())
