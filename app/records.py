"""What a network reports about itself.

A network returns a :class:`LanguageModelOutput`; ``network.measures(output)`` names what is inside as
:class:`Measure` objects that describe themselves. Watchers choose measures by ``kind`` and axis names, so
an architecture that nobody has seen yet is watched without an edit anywhere.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Kind = Literal["share", "count", "threshold", "level", "gain"]
Reduce = Literal["mean", "sum", "none"]


class LanguageModelOutput(NamedTuple):
    """The one return type of every language model.

    Attributes:
        logits: ``(B, T, V)``.
        loss: ``()`` cross-entropy alone, in nats per token; None without targets.
        aux_loss: ``()`` already weighted; the training loss is ``loss + aux_loss``.
        routing: one record per layer, in order; empty where a network routes nothing.
    """

    logits: Tensor
    loss: Tensor | None
    aux_loss: Tensor
    routing: list[Any]


class Axis(NamedTuple):
    """One axis of a measure: its name and, where they have names, its entries.

    The name ``"layer"`` stands for depth; ``labels`` may be empty (entries are then numbered).
    """

    name: str
    labels: tuple[str, ...] = ()


class TernaryWeight(NamedTuple):
    """The quantised form of one stored weight.

    Attributes:
        trits: int8, −1, 0 or 1, in the shape of the weight.
        scale: fp32, broadcastable to it; the weight used is ``scale · trits``.
        layer: index of the block that it belongs to; None outside of the blocks.
    """

    trits: Tensor
    scale: Tensor
    layer: int | None


@dataclass(frozen=True)
class Measure:
    """One quantity that a network reports, with all a watcher needs to log, reduce and draw it.

    Attributes:
        values: detached tensor with one dimension per axis, but see ``derive``.
        axes: what each dimension is; depth, where there is one, is the first and is called ``"layer"``.
        kind: ``share`` (fractions of tokens or probability, in [0, 1]), ``count`` (numbers of tokens),
            ``threshold`` (cut points), ``level`` (a quantity with a unit), ``gain`` (multiplicative weights).
        target: values to hold the measure against, broadcastable to ``values``; None where there is none.
        reduce: how two micro-batches or two ranks combine: ``mean`` (equal batch shares), ``sum``, or
            ``none`` for what is the same everywhere (read off the weights).
        unit: unit of a level, such as ``"nats"``; empty for plain numbers.
        in_force: bool, broadcastable to ``values``: False where they are reported but decide nothing yet, such as the
            shares of routes before routing begins, and so cannot be at fault; None where all count. Stays on the
            device.
        derive: makes the quantity out of combined ``values``, where it is no mean or sum of what micro-batches and
            ranks have, such as a rank of summed moments; ``axes`` are then those of what it returns, on the host.
            None where ``values`` are the quantity.
        meaning: what a number says, in words for a figure, without the unit; empty where the name has to do.
    """

    values: Tensor
    axes: tuple[Axis, ...]
    kind: Kind
    target: Tensor | None = None
    reduce: Reduce = "mean"
    unit: str = ""
    in_force: Tensor | None = None
    derive: Callable[[Tensor], Tensor] | None = None
    meaning: str = ""

    def __post_init__(self) -> None:
        if self.derive is None and self.values.dim() != len(self.axes):
            names = ", ".join(axis.name for axis in self.axes)
            raise ValueError(
                f"a measure with axes ({names}) cannot hold values of shape {tuple(self.values.shape)}"
            )

    def has_axis(self, name: str) -> bool:
        """Whether one of the axes has this name."""
        return any(axis.name == name for axis in self.axes)


@dataclass(frozen=True)
class TokenMeasure:
    """One quantity of every token: what a :class:`Measure` is a statistic of.

    Attributes:
        values: detached, ``(layers, B, T)`` or, of the network as a whole, ``(B, T)``; integers index ``labels``.
        labels: names of the categories; empty for a quantity.
        unit: unit of a quantity, such as ``"nats"``; empty for plain numbers and categories.
        meaning: what a value says, in words for a page; empty where the name has to do.
    """

    values: Tensor
    labels: tuple[str, ...] = ()
    unit: str = ""
    meaning: str = ""

    def __post_init__(self) -> None:
        if self.values.dim() not in (2, 3):
            raise ValueError(
                f"a token measure has shape (layers, B, T) or (B, T), not {tuple(self.values.shape)}"
            )


@dataclass(eq=False)
class StepRecord:
    """What one training micro-batch left behind for the watchers.

    Deliberately not a tensor container: the framework detaches and moves containers that it sees, this is
    handed through untouched. ``measures`` is computed at most once, however many watchers ask.

    Attributes:
        step: number of the optimizer step that this micro-batch belongs to, counted from 1.
        micro_step: index of the micro-batch inside the step, counted from 0.
        is_last_micro: whether the optimizer step happened with this micro-batch.
        is_logged: whether watchers log at this step; the same on every rank.
        tokens: tokens in this micro-batch on this rank.
        output: the network's output, detached and without logits.
        measure: ``network.measures``.
    """

    step: int
    micro_step: int
    is_last_micro: bool
    is_logged: bool
    tokens: int
    output: LanguageModelOutput
    measure: Callable[[LanguageModelOutput], Mapping[str, Measure]] = field(repr=False)

    @cached_property
    def measures(self) -> Mapping[str, Measure]:
        """The network's measures of this micro-batch, detached."""
        with torch.no_grad():
            return self.measure(self.output)
