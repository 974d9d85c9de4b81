"""What a quantity was in every layer at every logged step, in a bounded number of columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from app.records import Kind, Measure

MAX_COLUMNS = 128
#: entries of a layer that are kept one by one; beyond, what stands for them all
MAX_ENTRIES = 40
#: between the labels of several axes in the name of an entry
SEPARATOR = " · "


@dataclass(frozen=True)
class Rows:
    """What the numbers of a :class:`DepthTime` are.

    Attributes:
        name: of the quantity.
        kind: as of a :class:`~app.records.Measure`.
        layers: a name for each layer, first to last.
        entries: a name for each entry of a layer, in row-major order; one empty name where a layer has one number.
        n_inner: entries that belong together, the size of the last axis where there are several; else 1.
        inner: name of that axis.
        target: ``(layers or 1, entries or 1)`` values to hold the numbers against; None where there are none.
        unit: of the numbers; empty for plain ones.
        note: what stands for the entries where there were too many to keep; else empty.
        meaning: what a number says, in words; empty where the name has to do.
        neutral: number that is neither good nor bad, at which colours part; None where there is none.
        maximum: the most that a number can be; None where nothing says.
    """

    name: str
    kind: Kind
    layers: tuple[str, ...]
    entries: tuple[str, ...] = ("",)
    n_inner: int = 1
    inner: str = ""
    target: tuple[tuple[float, ...], ...] | None = None
    unit: str = ""
    note: str = ""
    meaning: str = ""
    neutral: float | None = None
    maximum: float | None = None


@dataclass(frozen=True)
class About:
    """What a callback knows of the numbers that it writes as details; see the attributes of :class:`Rows`."""

    meaning: str
    unit: str = ""
    neutral: float | None = None


def of_measure(name: str, measure: Measure) -> tuple[Rows, np.ndarray]:
    """Describes a measure whose first axis is depth, and lays its values out.

    Args:
        name: of the measure.
        measure: with values and target on the host.

    Returns:
        Its description and its values ``(layers, entries)``. Of more than :data:`MAX_ENTRIES` entries the largest
        one (shares and counts) or the mean (all else) is left, which ``note`` says.
    """
    depth, *others = measure.axes
    n_layers = measure.values.shape[0]
    values = measure.values.double().numpy().reshape(n_layers, -1)
    layers = depth.labels or tuple(map(str, range(n_layers)))
    if values.shape[1] > MAX_ENTRIES:
        is_largest = measure.kind in ("share", "count")
        note = f"{'largest' if is_largest else 'mean'} of {values.shape[1]}"
        left = values.max(axis=1) if is_largest else values.mean(axis=1)
        rows = Rows(name, measure.kind, layers, unit=measure.unit, note=note, meaning=measure.meaning)
        return rows, left[:, None]
    is_nested = len(others) > 1
    entries = [""]
    for number, (axis, size) in enumerate(zip(others, measure.values.shape[1:], strict=True), 1):
        labels = axis.labels or tuple(map(str, range(size)))
        if not is_nested or number < len(others):  # a mere number needs its axis beside it
            labels = tuple(f"{axis.name} {label}" if label.isdecimal() else label for label in labels)
        entries = [f"{entry}{SEPARATOR}{label}" if entry else label for entry in entries for label in labels]
    target = None
    if measure.target is not None:
        full = measure.target.double().expand(measure.values.shape).numpy().reshape(values.shape)
        target = tuple(tuple(map(float, row)) for row in full)
    return (
        Rows(
            name,
            measure.kind,
            layers,
            tuple(entries),
            measure.values.shape[-1] if is_nested else 1,
            others[-1].name if is_nested else "",
            target,
            measure.unit,
            meaning=measure.meaning,
            maximum=measure.maximum,
        ),
        values,
    )


class DepthTime:
    """Numbers per layer and entry over optimizer steps.

    A column is the mean of ``stride`` logged steps; when all columns are full, neighbours become one and the stride
    doubles. What is kept depends on the numbers alone and not on where a run was interrupted.

    Args:
        n_rows: layers times entries.
        max_columns: even number of columns at most.
    """

    def __init__(self, n_rows: int, max_columns: int = MAX_COLUMNS):
        self.max_columns = max_columns
        self.stride = 1
        self.steps: list[int] = []  # last step of each column
        self.counts: list[int] = []  # logged steps in each column
        self._sums = np.zeros((max_columns, n_rows), dtype=np.float32)

    @property
    def n_rows(self) -> int:
        """Layers times entries."""
        return int(self._sums.shape[1])

    @property
    def values(self) -> np.ndarray:
        """``(n_rows, columns)``, means of the columns."""
        n = len(self.steps)
        return (self._sums[:n] / np.asarray(self.counts, dtype=np.float32)[:, None]).T

    @property
    def edges(self) -> np.ndarray:
        """``(columns + 1,)`` steps; column i holds the logged steps after edge i, up to edge i + 1."""
        return np.asarray([0, *self.steps], dtype=np.float64)

    def add(self, step: int, values: Sequence[float] | np.ndarray) -> None:
        """Takes in a logged step, later than all before; its row-major values may be NaN.

        Args:
            step: completed optimizer steps.
            values: ``n_rows`` numbers.
        """
        if self.counts and self.counts[-1] < self.stride:
            self.steps[-1] = step
            self.counts[-1] += 1
        else:
            if len(self.steps) == self.max_columns:
                self._halve()
            self.steps.append(step)
            self.counts.append(1)
        with np.errstate(over="ignore", invalid="ignore"):  # what single precision cannot hold is no number
            self._sums[len(self.steps) - 1] += np.asarray(values, dtype=np.float32).reshape(-1)

    def _halve(self) -> None:
        half = self.max_columns // 2
        with np.errstate(over="ignore", invalid="ignore"):
            self._sums[:half] = self._sums[0::2] + self._sums[1::2]
        self._sums[half:] = 0
        self.steps = self.steps[1::2]
        self.counts = [a + b for a, b in zip(self.counts[0::2], self.counts[1::2], strict=True)]
        self.stride *= 2

    def state_dict(self) -> dict[str, Any]:
        """Everything, in plain values and one tensor."""
        return {
            "stride": self.stride,
            "steps": list(self.steps),
            "counts": list(self.counts),
            "sums": torch.from_numpy(self._sums[: len(self.steps)].copy()),
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], max_columns: int = MAX_COLUMNS) -> "DepthTime":
        """What :meth:`state_dict` gave."""
        made = cls(state["sums"].shape[1], max_columns)
        made.stride, made.steps, made.counts = state["stride"], list(state["steps"]), list(state["counts"])
        made._sums[: len(made.steps)] = state["sums"].numpy()
        return made
