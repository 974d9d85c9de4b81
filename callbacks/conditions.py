"""What can be wrong with a run, each condition a small object that looks at the numbers of the logged steps.

A condition chooses its measures by kind, unit and axes, so that it also judges an architecture that nobody has seen.
It is told at every logged step what holds, and remembers what it needs in plain values.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np

from app.records import Measure, StepRecord

#: measures that :class:`~callbacks.RunHealth` adds to those of the network
FLIPS, GRADIENT_NORM, PARAMETER_NORMS = "ternary flips", "gradient norm", "gradient norm per parameter"

Measures = Mapping[str, Measure]
IsOpen = Callable[[str], bool]


@dataclass(frozen=True)
class Finding:
    """Something that holds at a logged step.

    Attributes:
        key: names condition and place; the same for as long as it holds.
        layer: index of the layer; None where it has none.
        place: the layer and whatever else tells where, for a person.
        what: what is wrong there, for a person.
        value: the number that was judged; None where there is no single one.
    """

    key: str
    layer: int | None
    place: str
    what: str
    value: float | None


class Condition:
    """One thing that can be wrong.

    Attributes:
        name: of the condition, the beginning of its findings' keys.
        remedy: what to try first.
    """

    name: str
    remedy: str

    def select(self, measures: Measures) -> Iterable[str]:
        """Names of the measures that it looks at."""
        return ()

    def look(self, step: int, measures: Measures, is_open: IsOpen) -> Iterator[Finding]:
        """Everything that holds now.

        Args:
            step: the logged step.
            measures: at least the selected ones, on the host, over the global batch.
            is_open: whether the finding with a key held at the logged step before; a condition on a level then
                ends only at a clearly better one, so that it does not come and go.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Plain values that a resumed run goes on from."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes them back."""


class DeadBank(Condition):
    """A bank without a token in any logged step over more than ``patience`` steps.

    Looks at counts with a ``bank`` axis.
    """

    name = "dead_bank"
    remedy = "give the balance of the banks more weight, or a rule that steers towards unused ones"

    def __init__(self, patience: int):
        self.patience = patience
        self._empty_since: dict[str, list[int]] = {}  # first logged step of the gap per entry; 0 where used

    def select(self, measures: Measures) -> Iterable[str]:
        return [name for name, m in measures.items() if m.kind == "count" and m.has_axis("bank")]

    def look(self, step: int, measures: Measures, is_open: IsOpen) -> Iterator[Finding]:
        """Banks that have been empty for too long."""
        for name in self.select(measures):
            loads = measures[name].values.reshape(-1).tolist()
            before = self._empty_since.get(name) or [0] * len(loads)
            since = [(start or step) if load == 0 else 0 for load, start in zip(loads, before, strict=True)]
            self._empty_since[name] = since
            for entry, start in enumerate(since):
                if start and step - start > self.patience:
                    layer, place = place_of(measures[name], entry)
                    what = f"no token in any logged step since step {start}"
                    yield Finding(f"{self.name}/{name}/{place}", layer, place, what, float(step - start))

    def state_dict(self) -> dict[str, Any]:
        """Since when each bank is empty."""
        return {"empty_since": {name: list(since) for name, since in self._empty_since.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._empty_since = {name: list(since) for name, since in state_dict["empty_since"].items()}


class OneSided(Condition):
    """One entry of a layer's shares above ``limit``; ends below ``limit − 0.05``.

    Looks at shares over layers and at least one further axis with several entries, banks left out. An entry whose own
    target lies above the limit is meant to be there.
    """

    name = "one_sided"
    remedy = "lower learning_rate, lengthen warmup_steps, or balance the shares with an auxiliary loss"

    def __init__(self, limit: float):
        self.limit = limit

    def select(self, measures: Measures) -> Iterable[str]:
        return [name for name, m in measures.items() if _n_entries(m) > 1]

    def look(self, step: int, measures: Measures, is_open: IsOpen) -> Iterator[Finding]:
        """Layers that one route has nearly to itself."""
        for name in self.select(measures):
            measure = measures[name]
            targets = np.zeros(measure.values.shape)
            if measure.target is not None:
                targets = np.broadcast_to(measure.target.numpy(), measure.values.shape)
            shares = measure.values.reshape(-1).tolist()
            for entry, (share, target) in enumerate(zip(shares, targets.reshape(-1), strict=True)):
                layer, place = place_of(measure, entry)
                key = f"{self.name}/{name}/{place}"
                if share > self.limit - (0.05 if is_open(key) else 0.0) and target <= self.limit:
                    yield Finding(key, layer, place, f"has {share:.1%} of {name}", share)


class LowEntropy(Condition):
    """Entropy of a layer's router below ``limit · ln P``; ends above 1.5 times that.

    Looks at levels in nats, one per layer. P is the number of entries of the layer's shares, the smallest one where a
    network has several kinds; without shares there is nothing to hold an entropy against.
    """

    name = "low_entropy"
    remedy = "lower learning_rate, or add noise or a z-loss to the router"

    def __init__(self, limit: float):
        self.limit = limit

    def select(self, measures: Measures) -> Iterable[str]:
        """Entropies, and the shares that tell P."""
        shares = [name for name, m in measures.items() if _n_entries(m) > 1]
        return [*shares, *(n for n, m in measures.items() if _is_entropy(m))] if shares else []

    def look(self, step: int, measures: Measures, is_open: IsOpen) -> Iterator[Finding]:
        """Layers whose router has made up its mind whatever it reads."""
        entries = [n for m in measures.values() if (n := _n_entries(m)) > 1]
        for name in [n for n, m in measures.items() if entries and _is_entropy(m)]:
            most = math.log(min(entries))
            for entry, entropy in enumerate(measures[name].values.reshape(-1).tolist()):
                layer, place = place_of(measures[name], entry)
                key = f"{self.name}/{name}/{place}"
                if entropy < self.limit * most * (1.5 if is_open(key) else 1.0):
                    what = f"{name} is {entropy:.4f} nats of at most {most:.4f}"
                    yield Finding(key, layer, place, what, entropy)


class Disorder(Condition):
    """Cut points of a layer that do not rise.

    Looks at thresholds whose last axis has several entries.
    """

    name = "threshold_order"
    remedy = "lower the step of the thresholds' offsets, or lengthen the warm-up of the statistics"

    def select(self, measures: Measures) -> Iterable[str]:
        return [
            name
            for name, m in measures.items()
            if m.kind == "threshold" and m.axes[-1].name != "layer" and m.values.shape[-1] > 1
        ]

    def look(self, step: int, measures: Measures, is_open: IsOpen) -> Iterator[Finding]:
        """Layers in which a later threshold lies below an earlier one."""
        for name in self.select(measures):
            measure = measures[name]
            rows = measure.values.reshape(-1, measure.values.shape[-1])
            for row, cuts in enumerate(rows.tolist()):
                if any(later < earlier for earlier, later in itertools.pairwise(cuts)):
                    layer, place = place_of(Measure(measure.values[..., 0], measure.axes[:-1], "level"), row)
                    what = f"{name} are {', '.join(f'{cut:.4g}' for cut in cuts)}"
                    yield Finding(f"{self.name}/{name}/{place}", layer, place, what, None)


class NoFlips(Condition):
    """Ternary weights of a layer that no logged step has changed over more than ``patience`` steps."""

    name = "no_flips"
    remedy = "raise learning_rate, or lower weight_decay"

    def __init__(self, patience: int):
        self.patience = patience
        self._still_since: dict[str, int] = {}  # first logged step without a flip, by place

    def look(self, step: int, measures: Measures, is_open: IsOpen) -> Iterator[Finding]:
        """Layers that stand still."""
        if FLIPS not in measures:
            return
        measure = measures[FLIPS]
        for place, flips in zip(measure.axes[0].labels, measure.values.tolist(), strict=True):
            if flips:
                self._still_since.pop(place, None)
                continue
            start = self._still_since.setdefault(place, step)
            if step - start > self.patience:
                what = f"no trit has changed in any logged step since step {start}"
                yield Finding(f"{self.name}/{place}", _layer_in(place), place, what, float(step - start))

    def state_dict(self) -> dict[str, Any]:
        """Since when each layer stands still."""
        return {"still_since": dict(self._still_since)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._still_since = dict(state_dict["still_since"])


class GradientSpike(Condition):
    """Gradient norm above ``factor`` times the median of the logged steps before; ends below half of that.

    The median is that of the last 32 logged norms, from the 5th on. The place is the parameter with the largest
    gradient.
    """

    name = "gradient_spike"
    remedy = "lower learning_rate or gradient_clip, or lengthen warmup_steps"
    n_before, n_needed = 32, 5

    def __init__(self, factor: float):
        self.factor = factor
        self._norms: list[float] = []

    def look(self, step: int, measures: Measures, is_open: IsOpen) -> Iterator[Finding]:
        """The spike, if there is one."""
        norm = float(measures[GRADIENT_NORM].values) if GRADIENT_NORM in measures else math.nan
        if not math.isfinite(norm):
            return
        usual = median(self._norms) if len(self._norms) >= self.n_needed else math.inf
        if norm > usual * self.factor * (0.5 if is_open(self.name) else 1.0):
            largest = ""
            if PARAMETER_NORMS in measures:
                parameters = measures[PARAMETER_NORMS]
                largest = parameters.axes[0].labels[int(parameters.values.nan_to_num(0.0).argmax())]
            place = f"largest in {largest}" if largest else "all parameters"
            what = f"the gradient norm is {norm:.4g}, {norm / max(usual, 1e-30):.3g} times its median of {usual:.4g}"
            yield Finding(self.name, _layer_in(largest), place, what, norm)
        self._norms = [*self._norms, norm][-self.n_before :]

    def state_dict(self) -> dict[str, Any]:
        """The norms of the last logged steps."""
        return {"norms": list(self._norms)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._norms = list(state_dict["norms"])


def network_measures(record: StepRecord, conditions: Iterable[Condition]) -> dict[str, Measure]:
    """Those of the network's measures that some condition looks at.

    What is not in force reads as NaN, of which no condition holds; over the micro-batches and ranks of a step, one
    in which it is not in force is enough.
    """
    chosen = {name for condition in conditions for name in condition.select(record.measures)}
    return {name: _in_force(measure) for name, measure in record.measures.items() if name in chosen}


def place_of(measure: Measure, entry: int) -> tuple[int | None, str]:
    """Layer and name of one entry of a measure, by its row-major number."""
    position = np.unravel_index(entry, tuple(measure.values.shape))
    layer = int(position[0]) if measure.has_axis("layer") else None
    parts = [
        f"{axis.name} {axis.labels[at] if axis.labels else int(at)}"
        for axis, at in zip(measure.axes, position, strict=True)
    ]
    return layer, ", ".join(parts) or "the network"


def _in_force(measure: Measure) -> Measure:
    """The measure with NaN for what decides nothing yet."""
    if measure.in_force is None:
        return measure
    return replace(measure, values=measure.values.float().masked_fill(~measure.in_force, math.nan))


def _n_entries(measure: Measure) -> int:
    """Routes or pathways that a measure divides each layer's tokens among; 0 for any other measure."""
    if measure.kind != "share" or not measure.has_axis("layer") or measure.has_axis("bank"):
        return 0
    return measure.values[0].numel() if measure.values.dim() > 1 else 0


def _is_entropy(measure: Measure) -> bool:
    return measure.kind == "level" and measure.unit == "nats" and [a.name for a in measure.axes] == ["layer"]


def _layer_in(name: str) -> int | None:
    """The layer that a parameter's or a group's name carries: its first number standing alone."""
    found = re.search(r"(?:^|[ .])(\d+)(?:\.|$)", name)
    return int(found[1]) if found else None
