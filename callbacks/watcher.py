"""What every callback that watches a network's measures has in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from app.analysis.depth_time import About
from app.records import HearsDetails, LogsDetails, LogsFigures, Measure, StepRecord
from callbacks.gather import Chosen, SharedGather

# A scalar per layer, or per entry of a layer, up to these; beyond, summaries, and the matrix in the details.
MAX_LAYERS_AS_SCALARS = 8
MAX_ENTRIES_AS_SCALARS = 16


class Watcher(Callback):
    """A callback that looks at a run, and that the run can do without.

    In a run of the application a watcher that fails is switched off until the next launch and a figure that cannot be
    drawn is left out this once, both with a note: see :mod:`app.training.run_callbacks.watching`, which takes the
    place of :meth:`before_exchange` and :meth:`report_left_out`. In any other trainer the framework's rule holds, by
    which an exception in a callback ends the training.
    """

    def exchanges(self, record: StepRecord) -> bool:
        """Whether :meth:`on_train_batch_end` of this micro-batch exchanges numbers with the other ranks.

        But for what a :class:`MeasureWatcher` exchanges together with the others. The same on every rank. A watcher
        that does so at any other time cannot fail on one rank alone.
        """
        return False

    def before_exchange(self, n_numbers: int) -> None:
        """To be called right before an exchange: no rank then waits for one whose watcher has failed on the way.

        Args:
            n_numbers: how many this rank is about to hand over.
        """

    def report_left_out(self, trainer: Trainer, failures: Mapping[str, Exception]) -> None:
        """Says which figures could not be drawn this time.

        Args:
            trainer: whose run it is.
            failures: tag of a figure to what went wrong; empty when all were drawn.
        """
        for tag, error in failures.items():
            rank_zero_warn(f"{type(self).__name__}: {tag} is left out ({type(error).__name__}: {error})")

    def draw(self, trainer: Trainer, figures: Iterable[tuple[str, Callable[[], bytes]]]) -> None:
        """Draws figures and hands them to every logger that takes some; one that cannot be drawn is left out.

        Args:
            trainer: whose loggers.
            figures: tag, and what draws the PNG file.
        """
        writers = [logger.log_figure for logger in trainer.loggers if isinstance(logger, LogsFigures)]
        if not writers:
            return
        failures: dict[str, Exception] = {}
        for tag, drawn in figures:
            try:
                png = drawn()
            except Exception as error:
                failures[tag] = error
                continue
            for write in writers:
                write(tag, png, trainer.global_step)
        self.report_left_out(trainer, failures)


class MeasureWatcher(Watcher, ABC):
    """Turns chosen measures of a network into scalars and per-layer details, at logged steps only.

    Micro-batches are combined on the device, ranks by one all-reduce, each measure the way it says; one tensor then
    goes to the host. Both are of all such watchers together, see :class:`~callbacks.gather.SharedGather`. Between
    logged steps nothing is computed. Weights and random numbers are never touched.

    Attributes:
        last: scalars of the newest logged step, by key; the same on every rank.
        last_details: details of the newest logged step, nested lists by key; the same on every rank.
        chosen: of the step so far.
    """

    def __init__(self) -> None:
        self.last: dict[str, float] = {}
        self.last_details: dict[str, Any] = {}
        self.chosen = Chosen()
        self._gather: SharedGather | None = None  # the first one's is that of all
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

    def take_in(self, pl_module: LightningModule, record: StepRecord) -> None:
        """Chooses from a micro-batch of a logged step, before any watcher reports."""
        self.chosen.add(self.select(record), pl_module.device, record.micro_step == 0)

    def gather(self, trainer: Trainer) -> SharedGather:
        """What the watchers of a trainer share."""
        watchers = [c for c in trainer.callbacks if isinstance(c, MeasureWatcher)]  # type: ignore[attr-defined]
        watchers = watchers if self in watchers else [self]
        first = watchers[0]
        if first._gather is None or first._gather.watchers != watchers:
            first._gather = SharedGather(watchers)
        return first._gather

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes in a micro-batch of a logged step; with the last one, writes the step's numbers."""
        record = step_record(outputs)
        self.gather(trainer).take_in(pl_module, record)
        if not (record.is_logged and record.is_last_micro):
            return
        if not self.chosen:
            self._warn_of_nothing()
            return
        self.last, self.last_details = self.report(self.chosen.take())
        log_scalars(trainer, self.last, record.step)
        log_details(trainer, self.last_details, record.step)

    def _warn_of_nothing(self) -> None:
        if not self._has_warned:
            rank_zero_warn(
                f"{type(self).__name__} has no effect: this network reports nothing of the kind it watches; "
                "remove it from the callbacks"
            )
        self._has_warned = True


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
        if isinstance(logger, LogsDetails):
            logger.log_details(details, step)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, HearsDetails):
            callback.on_details(details, step, about or {})


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
