"""Figures of what every layer did since the first step."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from app.analysis.depth_time import MAX_ENTRIES, About, DepthTime, Rows, of_measure
from app.records import Measure, StepRecord
from callbacks.watcher import MeasureWatcher

Panels = dict[str, tuple[Rows, DepthTime]]

LAYER_NAME = re.compile(r"l\d+")
#: entries of a list of details that are drawn; longer ones (every parameter of a large network) are not
MAX_LISTED = 96


class DepthTimeFigures(MeasureWatcher):
    """Draws depth against time, at validations.

    Every quantity that has layers is drawn.
    Two sources, both of logged steps: the network's measures with a layer axis, drawn by kind (thresholds as lines
    with a band over layers, everything else as heat-maps: one panel per entry, one row per layer and entry of a last
    axis, colours that part at the target where there is one, and at zero where there are both signs), and the details
    of other callbacks (trits, alignment, spectra) that are lists over layers or numbers by name, one figure per group.
    What a measure already shows is not drawn again from the details, and what is zero everywhere so far is not drawn
    yet. Where the first 15 % of the run, or a peak in a tenth of it, dwarf all the rest, they may leave the scale; its
    ends then say ≤ or ≥. Each file carries its numbers, which ``app report`` draws anew.

    Logged figures, on rank zero, through every logger that has ``log_figure``:

    - ``depth/<name>``: of a measure; axes are optimizer step and layer, the colour bar names the unit
    - ``<group>/layers``: of the details ``<group>/…`` that are lists over layers, a panel each
    - ``<group>/<name>``: of details with names, or with several numbers per layer

    Time is kept in at most 128 columns, each the mean of equally many logged steps, so that memory, checkpoints and
    the cost of a figure do not grow with the run. A figure takes 0.1 to 0.3 s on one CPU core, on rank zero, at a
    validation; a logged step costs what any other watcher's does. The numbers are part of the checkpoint: the
    figures of a resumed run are those of an uninterrupted one.

    Args:
        every_n_validations: draw at the first validation, then at every n-th, and at the last step's; >= 1.

    Attributes:
        kept: by the tag of a figure, what was seen so far: title of each panel to its rows and numbers.

    Raises:
        ValueError: for an argument outside its range.
    """

    def __init__(self, every_n_validations: int = 1):
        super().__init__()
        if every_n_validations < 1:
            raise ValueError(f"every_n_validations is {every_n_validations}; it must be >= 1")
        self.every_n_validations = every_n_validations
        self.kept: dict[str, Panels] = {}
        self._names: frozenset[str] = frozenset()  # of all measures that the network reports
        self._pending: list[tuple[int, str, Any, About | None]] = []  # details until those names are known
        self._n_validations = 0
        self._step = 0

    def state_dict(self) -> dict[str, Any]:
        self._take_in_details()
        return {
            "n_validations": self._n_validations,
            "kept": {
                name: {
                    title: {"rows": asdict(rows), "numbers": numbers.state_dict()}
                    for title, (rows, numbers) in panels.items()
                }
                for name, panels in self.kept.items()
            },
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._n_validations = state_dict["n_validations"]
        self.kept = {
            name: {
                title: (Rows(**panel["rows"]), DepthTime.from_state_dict(panel["numbers"]))
                for title, panel in panels.items()
            }
            for name, panels in state_dict["kept"].items()
        }

    def select(self, record: StepRecord) -> dict[str, Measure]:
        """Every measure over layers."""
        self._step, self._names = record.step, frozenset(record.measures)
        return {name: m for name, m in record.measures.items() if m.axes and m.axes[0].name == "layer"}

    def report(self, measures: Mapping[str, Measure]) -> tuple[dict[str, float], dict[str, Any]]:
        """Keeps the numbers; logs none."""
        for name, measure in measures.items():
            self._keep(f"depth/{name}", "", self._step, *of_measure(name, measure))
        return {}, {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes in a logged step."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._take_in_details()

    def on_details(self, details: Mapping[str, Any], step: int, about: Mapping[str, About]) -> None:
        """Hears of the details that any callback writes, see :func:`callbacks.watcher.log_details`."""
        self._pending += [(step, key, values, about.get(key)) for key, values in details.items()]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws, during training only."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        self._take_in_details()
        self._n_validations += 1
        is_due = (self._n_validations - 1) % self.every_n_validations == 0
        if not (is_due or trainer.global_step == trainer.max_steps) or not trainer.is_global_zero:
            return
        if not self.kept and not self._has_warned:
            self._has_warned = True
            rank_zero_warn(
                "DepthTimeFigures has no effect: neither the network nor another callback reports anything by layer; "
                "remove it from the callbacks"
            )
        self.draw(trainer, self._figures(_stamp(trainer)))

    def _figures(self, stamp: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """Tag of each figure, and what draws it."""
        # The plotting library takes most of a second to import: never before there is something to draw.
        from app.analysis.figures import draw_group, draw_quantity

        for tag, panels in self.kept.items():
            if _is_nothing(panels):
                continue
            subject = tag.removeprefix("depth/").removesuffix("/layers")
            for number, together in enumerate(_alike(panels)):
                if len(together) > 1:
                    drawn = partial(draw_group, subject, together, stamp=stamp)
                else:
                    ((rows, numbers),) = together.values()
                    drawn = partial(draw_quantity, rows, numbers, stamp)
                yield f"{tag}/{number}" if number else tag, drawn

    def _warn_of_nothing(self) -> None:
        """Not yet: other callbacks may have something to draw."""

    def _take_in_details(self) -> None:
        pending, self._pending = self._pending, []
        for step, key, values, about in pending:
            group, _, name = key.partition("/")
            found = None if name in self._names else _of_details(key, values, about)
            if found is not None:
                is_list = len(found[0].entries) == 1 and all(map(str.isdecimal, found[0].layers))
                self._keep(f"{group}/layers" if is_list else key, name, step, *found)

    def _keep(self, tag: str, title: str, step: int, rows: Rows, values: np.ndarray) -> None:
        panels = self.kept.setdefault(tag, {})
        kept = panels.get(title)
        # A resumed run may report something else by this name, or the same in other words.
        is_same = kept is not None and (kept[0].layers, kept[0].entries) == (rows.layers, rows.entries)
        panels[title] = rows, kept[1] if kept is not None and is_same else DepthTime(values.size)
        panels[title][1].add(step, values)


def _stamp(trainer: Trainer) -> str:
    """Whose figure it is: the end of the run's path, step and day."""
    folder = Path(trainer.default_root_dir).absolute()
    return f"{folder.parent.name}/{folder.name}, step {trainer.global_step:,}, {datetime.now(UTC):%Y-%m-%d}"


def _of_details(key: str, values: Any, about: About | None) -> tuple[Rows, np.ndarray] | None:
    """A list over layers, of numbers or of equally long lists, or numbers by name; None for anything else.

    Names ``l<ii>`` are layers.
    """
    names = tuple(values) if isinstance(values, Mapping) else None
    try:
        matrix = np.asarray(list(values.values()) if names is not None else values, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    if matrix.ndim not in (1, 2) or not matrix.size or len(matrix) > MAX_LISTED:
        return None
    if matrix.ndim == 2 and (names is not None or matrix.shape[1] > MAX_ENTRIES):
        return None
    if names is not None and all(LAYER_NAME.fullmatch(name) for name in names):
        names = tuple(str(int(name[1:])) for name in names)
    entries = tuple(map(str, range(matrix.shape[1]))) if matrix.ndim == 2 else ("",)
    layers = names or tuple(map(str, range(len(matrix))))
    known = {} if about is None else asdict(about)
    return Rows(key.replace("/", ": "), "level", layers, entries, **known), matrix


def _is_nothing(panels: Panels) -> bool:
    """Whether nothing of it has happened yet: every number is zero."""
    return not any(numbers.values.any() for _, numbers in panels.values())


def _alike(panels: Panels) -> list[Panels]:
    """Panels that share layers and steps, together."""
    groups: dict[Any, Panels] = {}
    for title, (rows, numbers) in panels.items():
        groups.setdefault((rows.layers, tuple(numbers.steps)), {})[title] = (rows, numbers)
    return list(groups.values())
