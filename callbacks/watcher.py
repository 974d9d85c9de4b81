"""What every callback that watches a network's measures has in common."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from app.analysis.depth_time import About
from app.records import Measure, StepRecord

# A scalar per layer, or per entry of a layer, up to these; beyond, summaries, and the matrix in the details.
MAX_LAYERS_AS_SCALARS = 8
MAX_ENTRIES_AS_SCALARS = 16


class MeasureWatcher(Callback, ABC):
    """Turns chosen measures of a network into scalars and per-layer details, at logged steps only.

    Micro-batches are combined on the device and ranks by one all-reduce, each measure the way it says; one
    tensor then goes to the host, whatever the number of measures. Between logged steps nothing is computed.
    Weights and random numbers are never touched.

    Attributes:
        last: scalars of the newest logged step, by key; the same on every rank.
        last_details: details of the newest logged step, nested lists by key; the same on every rank.
    """

    def __init__(self) -> None:
        self.last: dict[str, float] = {}
        self.last_details: dict[str, Any] = {}
        self._measures: dict[str, Measure] = {}  # the newest micro-batch's
        self._sums: dict[str, Tensor] = {}  # over the micro-batches of the step so far
        self._has_warned = False

    @abstractmethod
    def select(self, record: StepRecord) -> dict[str, Measure]:
        """The measures to watch, chosen by kind, unit and axes; the same names on every rank."""

    @abstractmethod
    def report(self, measures: Mapping[str, Measure]) -> tuple[dict[str, float], dict[str, Any]]:
        """Scalars and details of one step.

        Args:
            measures: what was selected, with values (float64) and targets on the host, over the global batch.
        """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes in a micro-batch of a logged step; with the last one, writes the step's numbers."""
        record = step_record(outputs)
        if not record.is_logged:
            return
        if record.micro_step == 0:
            self._sums = {}
        self._measures = self.select(record)
        for name, measure in self._measures.items():
            values = _wide(measure.values, pl_module.device)
            if measure.reduce != "none" and name in self._sums:
                values = self._sums[name] + values
            self._sums[name] = values
        if not record.is_last_micro:
            return
        if not self._measures:
            self._warn_of_nothing()
            return
        self.last, self.last_details = self.report(self._gather(record.micro_step + 1))
        self._measures, self._sums = {}, {}  # they may hold on to activations
        log_scalars(trainer, self.last, record.step)
        log_details(trainer, self.last_details, record.step)

    def _warn_of_nothing(self) -> None:
        if not self._has_warned:
            rank_zero_warn(
                f"{type(self).__name__} has no effect: this network reports nothing of the kind it watches; "
                "remove it from the callbacks"
            )
        self._has_warned = True

    def _gather(self, n_micro: int) -> dict[str, Measure]:
        """The step's measures on the host, combined over micro-batches and ranks."""
        reduced: dict[str, Tensor] = {}
        local: dict[str, Tensor] = {}  # the same on every rank
        for name, measure in self._measures.items():
            values = self._sums[name]
            (local if measure.reduce == "none" else reduced)[name] = values
            if measure.target is not None:
                local[f"{name} target"] = _wide(measure.target, values.device)
        world_size = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        stacked = [values.reshape(-1) for values in reduced.values()]
        if world_size > 1 and stacked:
            summed = torch.cat(stacked)
            dist.all_reduce(summed)
            stacked = [summed]
        flat = torch.cat(stacked + [values.reshape(-1) for values in local.values()]).cpu()
        host: dict[str, Tensor] = {}
        offset = 0
        for name, values in (reduced | local).items():
            host[name] = flat[offset : offset + values.numel()].reshape(values.shape).double()
            offset += values.numel()
        gathered = {}
        for name, measure in self._measures.items():
            values = host[name] / (n_micro * world_size) if measure.reduce == "mean" else host[name]
            if measure.derive is not None:
                values = measure.derive(values).double()
            target = host.get(f"{name} target")
            gathered[name] = Measure(
                values,
                measure.axes,
                measure.kind,
                target,
                measure.reduce,
                measure.unit,
                meaning=measure.meaning,
            )
        return gathered


def _wide(values: Tensor, device: torch.device) -> Tensor:
    """Detached, in the widest floating type of the device: a count in fp32 is exact only up to 2^24."""
    return values.detach().to(device, torch.float32 if device.type == "mps" else torch.float64)


def step_record(outputs: Any) -> StepRecord:
    """The record that ``training_step`` returned beside its loss.

    Raises:
        ValueError: when it returned none.
    """
    record = outputs.get("record") if isinstance(outputs, Mapping) else None
    if not isinstance(record, StepRecord):
        raise ValueError(
            "callbacks read a StepRecord under the key `record` of what `training_step` returns; "
            f"got {type(outputs).__name__}; return {{'loss': loss, 'record': record}}"
        )
    return record


def log_scalars(trainer: Trainer, scalars: Mapping[str, float], step: int) -> None:
    """Writes scalars through every logger; they act on rank zero only."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(scalars), step=step)


def log_details(
    trainer: Trainer, details: Mapping[str, Any], step: int, about: Mapping[str, About] | None = None
) -> None:
    """Writes nested lists through every logger that has ``log_details``, for callbacks with ``on_details`` to hear.

    Args:
        trainer: whose loggers and callbacks.
        details: key to nested lists of numbers.
        step: completed optimizer steps.
        about: what some of the keys mean, for a figure.
    """
    for logger in trainer.loggers:
        write = getattr(logger, "log_details", None)
        if write is not None:
            write(details, step)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        hear = getattr(callback, "on_details", None)
        if hear is not None:
            hear(details, step, about or {})


def over_layers(key: str, values: np.ndarray, layers: Sequence[int] | None = None) -> dict[str, float]:
    """Scalars of one quantity over depth: its mean, ``/min``, ``/max`` and, up to eight layers, ``/l<ii>``.

    Args:
        key: key of the mean.
        values: ``(n_layers,)``.
        layers: their numbers in the network; None where they are all of it.
    """
    scalars = {
        key: float(values.mean()),
        f"{key}/min": float(values.min()),
        f"{key}/max": float(values.max()),
    }
    if len(values) <= MAX_LAYERS_AS_SCALARS:
        scalars |= {
            f"{key}/l{layer:02d}": float(number)
            for layer, number in zip(layers or range(len(values)), values, strict=True)
        }
    return scalars


def entry_labels(measure: Measure, *, without: tuple[str, ...] = ("layer",)) -> list[str]:
    """Names of a measure's entries, the axes in ``without`` left out, in row-major order.

    Unlabelled entries are numbered; several axes are joined by a dot; without any axis left, one empty name.
    """
    names = [""]
    for axis, size in zip(measure.axes, measure.values.shape, strict=True):
        if axis.name not in without:
            labels = axis.labels or tuple(str(entry) for entry in range(size))
            names = [f"{name}.{label}" if name else label for name in names for label in labels]
    return names
