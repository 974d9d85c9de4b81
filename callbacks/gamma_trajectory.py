"""How gains and weight scales move over depth and time."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from app.analysis.depth_time import DepthTime, Rows
from app.analysis.gamma_families import device_scales
from app.analysis.gamma_fits import best_form, fit_all
from callbacks.watcher import Watcher, log_details, log_scalars, over_layers, step_record

#: of all panels of the figure
MEANING = (
    "root mean square of the gains of a norm, or of the entries of a matrix, in every layer; "
    "every panel has colours of its own"
)


class GammaTrajectory(Watcher):
    """Follows the scales of norms and matrices over depth.

    A family is a kind of weight that the blocks share, such as ``ln1`` or ``q_proj``; its scale in a layer is the root
    mean square of the gain, or ``‖W‖_F / √(out · in)``. Logged keys, at step 1, every ``every_n_steps`` and the last:

    - ``gamma/<family>``, ``/min``, ``/max``, ``/l<ii>``: mean, smallest and largest layer, and each of up to 8; >= 0
    - ``gamma/<family>/worst_layer``: the layer whose scale departs most, as a ratio, from the median layer's
    - ``gamma/<family>/exponent``: b of the fit ``a e^{bL}``, per layer; only where the fit is defined
    - ``gamma/<family>/exponent_r2``: its r2 on ln y, <= 1

    Details: ``gamma/<family>``, every layer as ``l<ii>``; ``gamma/<family>/fits``, the parameters of every form that
    is defined, and which one is best by AICc (see :mod:`app.analysis.gamma_fits`).

    Logged figure at the end of each validation, through every logger that has ``log_figure``: ``gamma/families``, a
    heat-map of depth over time per family. Its numbers are part of the checkpoint, in at most 128 columns, so that a
    resumed run draws one unbroken picture.

    Costs one transfer at the steps that it logs at, and nothing at others. The same on every rank.

    Args:
        every_n_steps: optimizer steps between two readings, >= 1.
        families: those to follow; None takes all.

    Attributes:
        last: scalars of the newest reading, by key.
        last_details: details of the newest reading, by key.
        kept: family to what was seen so far.

    Raises:
        ValueError: for an argument outside its range.
    """

    def __init__(self, every_n_steps: int = 100, families: list[str] | None = None):
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}; it must be 1 or more")
        if families is not None and not families:
            raise ValueError("families is empty; name at least one, or leave it out for all")
        self.every_n_steps = every_n_steps
        self.families = families
        self.last: dict[str, float] = {}
        self.last_details: dict[str, Any] = {}
        self.kept: dict[str, tuple[Rows, DepthTime]] = {}

    def state_dict(self) -> dict[str, Any]:
        return {
            "kept": {
                family: {"rows": asdict(rows), "numbers": numbers.state_dict()}
                for family, (rows, numbers) in self.kept.items()
            }
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.kept = {
            family: (Rows(**entry["rows"]), DepthTime.from_state_dict(entry["numbers"]))
            for family, entry in state_dict["kept"].items()
        }

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warns of families that the network does not have."""
        network: Any = pl_module.network
        there = {family for family, _ in device_scales(network.named_parameters())[0]}
        missing = sorted({*self.families} - there) if self.families is not None else []
        if missing or not there:
            rank_zero_warn(
                f"GammaTrajectory: this network has no {', '.join(missing) or 'numbered blocks'}; "
                f"it has {', '.join(sorted(there)) or 'nothing to follow'}"
            )

    def reads_weights(self, trainer: Trainer, step: int) -> bool:
        """After the first step, the last one and every n-th."""
        return step == 1 or step % self.every_n_steps == 0 or step == trainer.max_steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Reads the weights after a step that is due."""
        record = step_record(outputs)
        if not (record.is_last_micro and self.reads_weights(trainer, record.step)):
            return
        network: Any = pl_module.network
        keys, numbers = device_scales(network.named_parameters())
        values: dict[str, dict[int, float]] = {}
        for (family, layer), value in zip(keys, numbers.cpu().tolist(), strict=True):
            if self.families is None or family in self.families:
                values.setdefault(family, {})[layer] = value
        if not values:
            return
        self.last, self.last_details = {}, {}
        for family, by_layer in values.items():
            self._report(family, by_layer)
            names = tuple(str(layer) for layer in by_layer)
            rows = Rows(family, "gain", names)
            if family not in self.kept or self.kept[family][0] != rows:
                self.kept[family] = rows, DepthTime(len(names))
            self.kept[family][1].add(record.step, list(by_layer.values()))
        log_scalars(trainer, self.last, record.step)
        log_details(trainer, self.last_details, record.step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws, during training only."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING or not trainer.is_global_zero:
            return
        if self.kept:
            self.draw(trainer, self._figures())

    def _figures(self) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """Tag of each figure, and what draws it: families of equally many layers together."""
        # The plotting library takes most of a second to import: never before there is something to draw.
        from app.analysis.figures import draw_group

        groups: dict[tuple[str, ...], dict[str, tuple[Rows, DepthTime]]] = {}
        for family, (rows, numbers) in self.kept.items():
            groups.setdefault(rows.layers, {})[family] = rows, numbers
        for number, together in enumerate(groups.values()):
            tag = f"gamma/families/{number}" if number else "gamma/families"
            yield tag, partial(draw_group, "gamma", together, MEANING)

    def _report(self, family: str, by_layer: dict[int, float]) -> None:
        key = f"gamma/{family}"
        layers, values = list(by_layer), np.array(list(by_layer.values()))
        self.last |= over_layers(key, values, layers)
        typical = float(np.median(values))
        with np.errstate(divide="ignore", invalid="ignore"):
            departure = np.nan_to_num(np.abs(np.log(values / typical)), nan=0.0)
        self.last[f"{key}/worst_layer"] = float(layers[int(departure.argmax())])
        self.last_details[key] = {f"l{layer:02d}": value for layer, value in by_layer.items()}
        fits = fit_all(layers, values)
        exponential = fits["exponential"]
        if not exponential.undefined and exponential.r2_log is not None:
            self.last[f"{key}/exponent"] = exponential.parameters["b"]
            self.last[f"{key}/exponent_r2"] = exponential.r2_log
        defined = {form: dict(fit.parameters) for form, fit in fits.items() if not fit.undefined}
        self.last_details[f"{key}/fits"] = {"best": best_form(fits), "parameters": defined}
