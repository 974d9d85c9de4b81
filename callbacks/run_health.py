"""Says, once, when something about a run is wrong, and when it is over."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from app.records import Axis, LogsHealth, Measure, StepRecord
from callbacks import conditions
from callbacks.trits import TritCounts, TritWatch
from callbacks.watcher import MeasureWatcher, step_record

MAX_PLACES_NAMED = 3  # on one line of the terminal


class RunHealth(MeasureWatcher):
    """Warns of dead banks, stuck routers and gradient spikes.

    Looks at the logged steps for six conditions; each is told when it begins and when it ends.

    - ``dead_bank``: a bank without a token in any logged step over more than ``dead_steps`` steps
    - ``one_sided``: one route or pathway of a layer with a share above ``max_share``, until below ``max_share`` − 0.05
    - ``low_entropy``: entropy of a layer's router below ``min_entropy`` · ln P, until above 1.5 times that
    - ``threshold_order``: thresholds of a layer that do not rise
    - ``no_flips``: ternary weights of a layer of which no logged step changed one over more than ``still_steps`` steps
    - ``gradient_spike``: gradient norm above ``spike_factor`` times the median of the 32 logged steps before, until
      below half of that

    Measures are chosen by kind and axes, whatever the architecture; what a network does not report, or reports as not
    in force yet (:attr:`~app.records.Measure.in_force`), is not judged. On rank zero a finding is one line on the
    terminal, with layer, step and what to try first (findings of one condition that begin or end together share a
    line), and one line each in ``health.jsonl``, through every logger that has ``log_health``: ``step``, ``key``,
    ``state`` (``begins`` or ``ends``), ``condition``, ``layer``, ``place``, ``what``, ``value``, ``remedy``. What is
    open is kept in checkpoints: a resumed run neither repeats nor forgets it. Logged keys:

    - ``health/open``: findings that hold, >= 0

    Args:
        dead_steps: see ``dead_bank``, >= 1.
        max_share: see ``one_sided``, in (0.5, 1).
        min_entropy: see ``low_entropy``, in (0, 0.5).
        still_steps: see ``no_flips``, >= 1.
        spike_factor: see ``gradient_spike``, > 2.

    Attributes:
        open: fields of the findings that hold, by key.

    Raises:
        ValueError: for an argument outside its range.
    """

    def __init__(
        self,
        dead_steps: int = 200,
        max_share: float = 0.95,
        min_entropy: float = 0.1,
        still_steps: int = 200,
        spike_factor: float = 10.0,
    ):
        for name, value, holds, rule in (
            ("dead_steps", dead_steps, dead_steps >= 1, "it must be 1 or more optimizer steps"),
            ("max_share", max_share, 0.5 < max_share < 1, "it must lie between 0.5 and 1"),
            ("min_entropy", min_entropy, 0 < min_entropy < 0.5, "it must lie between 0 and 0.5"),
            ("still_steps", still_steps, still_steps >= 1, "it must be 1 or more optimizer steps"),
            ("spike_factor", spike_factor, spike_factor > 2, "it must be above 2"),
        ):
            if not holds:
                raise ValueError(f"{name} is {value}; {rule}")
        super().__init__()
        self.conditions: list[conditions.Condition] = [
            conditions.DeadBank(dead_steps),
            conditions.OneSided(max_share),
            conditions.LowEntropy(min_entropy),
            conditions.Disorder(),
            conditions.NoFlips(still_steps),
            conditions.GradientSpike(spike_factor),
        ]
        self.open: dict[str, dict[str, Any]] = {}
        self._changed: dict[
            str, dict[str, Any]
        ] = {}  # findings that began or ended at the newest logged step
        self._own: dict[str, Measure] = {}
        self._step = 0

    def state_dict(self) -> dict[str, Any]:
        """What is open, and what each condition remembers."""
        return {
            "open": {key: dict(fields) for key, fields in self.open.items()},
            "conditions": {condition.name: condition.state_dict() for condition in self.conditions},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.open = {key: dict(fields) for key, fields in state_dict["open"].items()}
        for condition in self.conditions:
            condition.load_state_dict(state_dict["conditions"][condition.name])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets ``health.jsonl`` drop what lies after the step that this launch begins with."""
        self._write(trainer, {}, trainer.global_step)
        TritWatch.begin(pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keeps the trits that a logged step starts from."""
        TritWatch.of(pl_module).before_step(trainer, pl_module)

    def take_in(self, pl_module: LightningModule, record: StepRecord) -> None:
        """Also chooses gradients and flips, which a step has once."""
        self._own = {}
        if record.is_last_micro:
            self._step, self._changed = record.step, {}
            self._own = _own_measures(pl_module, TritWatch.of(pl_module).after_step(pl_module, record.step))
        super().take_in(pl_module, record)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes in a micro-batch of a logged step; after the last one, says what has changed."""
        record = step_record(outputs)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if record.is_logged and record.is_last_micro and self._changed:
            self._write(trainer, self._changed, record.step)
            if trainer.is_global_zero:
                for line in self._lines():
                    print(line, flush=True)  # an open display takes it in above itself

    def select(self, record: StepRecord) -> dict[str, Measure]:
        """What some condition looks at."""
        return conditions.network_measures(record, self.conditions) | self._own

    def report(self, measures: Mapping[str, Measure]) -> tuple[dict[str, float], dict[str, Any]]:
        """The number of open findings; which begin and end is kept for the lines."""
        now: dict[str, dict[str, Any]] = {}
        for condition in self.conditions:
            for finding in condition.look(self._step, measures, self.open.__contains__):
                now[finding.key] = {
                    "condition": condition.name,
                    "layer": finding.layer,
                    "place": finding.place,
                    "what": finding.what,
                    "value": finding.value,
                    "remedy": condition.remedy,
                }
        ended = {key: {"state": "ends"} | self.open[key] for key in self.open if key not in now}
        begun = {key: {"state": "begins"} | now[key] for key in now if key not in self.open}
        self._changed = ended | begun
        self.open = {key: self.open.get(key, now[key]) for key in now}
        return {"health/open": float(len(self.open))}, {}

    def open_findings(self) -> Mapping[str, Mapping[str, Any]]:
        """What holds now, for whoever shows the run."""
        return self.open

    def _lines(self) -> list[str]:
        """One line per condition that begins or ends."""
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for fields in self._changed.values():
            groups.setdefault((fields["state"], fields["condition"]), []).append(fields)
        lines = []
        for (state, condition), members in groups.items():
            places = "; ".join(fields["place"] for fields in members[:MAX_PLACES_NAMED])
            if len(members) > MAX_PLACES_NAMED:
                places += f"; {len(members) - MAX_PLACES_NAMED} more in health.jsonl"
            first = members[0]
            tail = f"{first['what']}; try first: {first['remedy']}" if state == "begins" else "is over"
            lines.append(f"health   step {self._step}: {condition}, {places}: {tail}")
        return lines

    def _write(self, trainer: Trainer, findings: dict[str, dict[str, Any]], step: int) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, LogsHealth):
                logger.log_health(findings, step)


def _own_measures(pl_module: Any, counts: TritCounts | None) -> dict[str, Measure]:
    """What is judged beside the network's measures, the same on every rank: gradients, and flips per layer."""
    found: dict[str, Measure] = {}
    norm = getattr(pl_module, "gradient_norm", None)
    if norm is not None:
        found[conditions.GRADIENT_NORM] = Measure(norm, (), "level", reduce="none")
        gradients = {
            name: parameter.grad
            for name, parameter in pl_module.network.named_parameters()
            if parameter.grad is not None
        }
        if gradients:
            # Clipping scales all of them alike, so that the largest one stays the largest.
            norms = torch.stack(torch._foreach_norm([*gradients.values()]))
            axes = (Axis("parameter", tuple(gradients)),)
            found[conditions.PARAMETER_NORMS] = Measure(norms, axes, "level", reduce="none")
    if counts is not None:
        groups: dict[str, Tensor] = {}
        for layer, flips in zip(counts.layers, counts.values[:, 4], strict=True):
            name = "outside of the layers" if layer is None else f"layer {layer}"
            groups[name] = groups[name] + flips if name in groups else flips
        axes = (Axis("group", tuple(groups)),)
        found[conditions.FLIPS] = Measure(torch.stack(list(groups.values())), axes, "count", reduce="none")
    return found
