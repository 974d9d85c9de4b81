"""What a network reports about itself.

A network returns a :class:`LanguageModelOutput`; ``network.measures(output)`` names what is inside as
:class:`Measure` objects that describe themselves. Watchers choose measures by ``kind`` and axis names, so
an architecture that nobody has seen yet is watched without an edit anywhere.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

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
        captured: activations by name, where some were asked for; else None.
    """

    logits: Tensor
    loss: Tensor | None
    aux_loss: Tensor
    routing: list[Any]
    captured: Mapping[str, Tensor] | None = None


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
        maximum: the most that a value can be, such as ln P of an entropy over P routes; None where nothing says.
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
    maximum: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.values, Tensor):
            raise TypeError(f"the values of a measure are a tensor, not a {type(self.values).__name__}")
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


class MeasuresError(Exception):
    """A network cannot say its measures; the message names the method."""


@dataclass(eq=False)
class StepRecord:
    """What one training micro-batch left behind for the watchers.

    Deliberately not a tensor container: the framework detaches and moves containers that it sees, this is
    handed through untouched. ``measures`` is computed at most once, however many watchers ask, unless it fails.

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
        """The network's measures of this micro-batch, detached.

        Raises:
            MeasuresError: ``network.measures`` has failed, which is no fault of who asks; what it raised is the cause.
        """
        try:
            with torch.no_grad():
                found = self.measure(self.output)
            if not isinstance(found, Mapping) or not all(isinstance(m, Measure) for m in found.values()):
                raise TypeError("returns no dict of names to Measure")
        except Exception as error:
            raise MeasuresError(getattr(self.measure, "__qualname__", "measures")) from error
        return found


def detached(value: Any) -> Any:
    """The same records, lists and tuples with every tensor in them detached; anything else as it is."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(detached, value))
    if isinstance(value, list | tuple):
        return type(value)(map(detached, value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: detached(getattr(value, each.name)) for each in fields(value)})
    return value


# -- who takes what is reported ---------------------------------------------------------------------------


@runtime_checkable
class LogsText(Protocol):
    """A logger that takes texts."""

    def log_text(self, tag: str, text: str, step: int) -> None: ...


@runtime_checkable
class LogsFigures(Protocol):
    """A logger that takes pictures."""

    def log_figure(self, tag: str, png: bytes, step: int) -> None: ...


@runtime_checkable
class LogsDetails(Protocol):
    """A logger that takes nested lists of numbers."""

    def log_details(self, details: Mapping[str, Any], step: int) -> None: ...


@runtime_checkable
class LogsHealth(Protocol):
    """A logger that takes findings about a run."""

    def log_health(self, findings: Mapping[str, Mapping[str, Any]], step: int) -> None: ...


@runtime_checkable
class ReadsWeights(Protocol):
    """A callback that reads parameters after steps of its own choice, beside those that are logged.

    Where parameters are kept in shards they are put together for it.
    """

    def reads_weights(self, trainer: Any, step: int) -> bool:
        """Whether it does after this step, counted from 1; the same on every rank."""


@runtime_checkable
class HoldsFindings(Protocol):
    """A callback that finds what is wrong with a run: by key, what holds now, each with its ``condition``."""

    def open_findings(self) -> Mapping[str, Mapping[str, Any]]: ...


@runtime_checkable
class HearsDetails(Protocol):
    """A callback that reads the details of others; ``about`` says what some of their keys mean."""

    def on_details(self, details: Mapping[str, Any], step: int, about: Mapping[str, Any]) -> None: ...
