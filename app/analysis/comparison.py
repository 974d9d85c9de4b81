"""Runs beside each other: what differs in their configurations, their figures, and runs that differ by seed alone."""

import csv
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from app.analysis.curves import in_proportion

#: where a run lives and how it was launched says nothing about what was trained
IGNORED = ("run_dir", "resume", "trust_imports")
SEED = "seed"
#: what changes bits, and with them a result, beside the configuration: keys of :attr:`Run.context`, how each is named
MADE_WITH = {
    "launch.commit": "commit",
    "launch.source_diff_sha256": "uncommitted changes",
    "place.device": "",
    "place.torch": "torch",
    "place.world_size": "world size",
    "place.reproducible": "reproducible",
    "launch.changes": "changed",
}
#: figures of a run, in the order of the table
FIGURES = (
    "val/loss",
    "val/bpb",
    "val/unknown_share",
    "best/val_loss",
    "best/step",
    "train/loss",
    "tokens_seen",
    "speed/seconds",
    "tokens_per_second",
    "parameters",
    "baseline/count_loss",
    "baseline/count_bpb",
)

#: those of them that are the last value of a series
LAST = ("val/loss", "val/bpb", "val/unknown_share", "train/loss", "tokens_seen", "speed/seconds")

MOST_IN_LABEL = 3  # settings; the table has them all
HASH = re.compile("[0-9a-f]{40,64}")  # of a commit or of a content
#: a run directory's name that no person has chosen: a time and four hexadecimal digits
GENERATED = re.compile(r"\d{8}T\d{6}\.\d{3}Z-[0-9a-f]{4}")


@dataclass
class Run:
    """One run as it was found.

    Attributes:
        path: as the user named it.
        state: ``finished``, ``running``, ``stopped``, ``failed``, ``killed`` or ``unknown``.
        configuration: dotted key to value.
        context: data fingerprint, device and versions; what they were and not what was asked for. Of a run with several
            launches, a key of :data:`MADE_WITH` holds all its values in order.
        rows: of ``metrics.csv``, key to number, in order; ``step`` among them.
        summary: final figures; empty where the run did not reach its end.
        experiment: name of the configuration that it was begun with; empty where that is not known.
    """

    path: str
    state: str
    configuration: dict[str, Any]
    context: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, float]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    experiment: str = ""

    @property
    def seed(self) -> Any:
        return self.configuration.get(SEED)

    @property
    def text(self) -> str:
        """Name of the text that it was trained on; empty where the run does not say."""
        source = str(self.context.get("data.source") or "")
        path = self.configuration.get("data.init_args.path")
        return Path(str(path)).name if source == "path" and path else source

    @property
    def last_step(self) -> int:
        """The last step with a row."""
        return int(max((row["step"] for row in self.rows), default=0))

    def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of one key, both ``(n,)`` float64; empty where nothing was logged."""
        pairs = [(row["step"], row[key]) for row in self.rows if key in row]
        steps, values = zip(*pairs, strict=True) if pairs else ((), ())
        return np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)

    def against(self, x_key: str, key: str) -> tuple[np.ndarray, np.ndarray]:
        """One key over another that is logged at training steps, in proportion between them.

        Returns:
            ``(n,)`` x and y; both empty where one of the two was never logged.
        """
        steps, values = self.series(key)
        known, x = self.series(x_key)
        if not len(steps) or not len(known):
            return np.empty(0), np.empty(0)
        inside = steps <= known[-1]
        return in_proportion(steps[inside], known, x), values[inside]

    def figures(self) -> dict[str, float]:
        """Final and best figures, those that are there."""
        found: dict[str, float] = {}
        for key in LAST:
            _, values = self.series(key)
            if len(values):
                found[key] = float(values[-1])
        steps, losses = self.series("val/loss")
        if len(losses) and np.isfinite(losses).any():
            best = int(np.nanargmin(np.where(np.isfinite(losses), losses, np.inf)))
            found |= {"best/val_loss": float(losses[best]), "best/step": float(steps[best])}
        if found.get("speed/seconds", 0) > 0 and "tokens_seen" in found:
            found["tokens_per_second"] = found["tokens_seen"] / found["speed/seconds"]
        for key in ("parameters", "baseline/count_loss", "baseline/count_bpb"):
            if isinstance(number := self.summary.get(key), int | float):
                found[key] = float(number)
        return {key: found[key] for key in FIGURES if key in found}


class Spread(NamedTuple):
    """A figure over the runs of a group: mean, sample standard deviation (0 of one run), number of runs."""

    mean: float
    sd: float
    n: int


@dataclass
class Group:
    """Runs that are equal but for the seed, and have come equally far.

    Attributes:
        letter: ``A``, ``B``, …
        label: what tells it from the other groups, in few words.
        runs: at least one, the first of each seed: a seed that was run twice is no second sample.
        repeats: the others.
    """

    letter: str
    label: str
    runs: list[Run]
    repeats: list[Run] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.letter}  {self.label}" + (f"  (n = {len(self.runs)})" if len(self.runs) > 1 else "")

    def figures(self) -> dict[str, Spread]:
        """Every figure that all runs have."""
        each = [run.figures() for run in self.runs]
        spreads = {}
        for key in FIGURES:
            values = [figures[key] for figures in each if key in figures]
            if len(values) == len(each):
                sd = statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else 0.0
                spreads[key] = Spread(sum(values) / len(values), sd, len(values))
        return spreads


@dataclass
class Comparison:
    """Groups of runs and what they differ in.

    Attributes:
        groups: in the order in which their first run was named.
        differences: key to one value for each group; ``None`` where a configuration has no such key.
        loss_key: ``val/loss``, or ``val/bpb`` where tokens are not the same and nats per token do not compare. A group
            whose tokens do not hold all of its text has no ``val/bpb``, see :meth:`without_bytes`.
    """

    groups: list[Group]
    differences: dict[str, list[Any]]
    loss_key: str

    @property
    def without_bytes(self) -> dict[str, float | None]:
        """Letter of each group without bits per byte to its share of unknown words, as far as it is known."""
        found: dict[str, float | None] = {}
        for group in self.groups:
            figures = [run.figures() for run in group.runs]
            if any("val/loss" in figure and "val/bpb" not in figure for figure in figures):
                found[group.letter] = max(
                    (figure.get("val/unknown_share") for figure in figures), key=_or_zero
                )
        return found

    @property
    def texts(self) -> dict[str, tuple[str, list[str]]]:
        """Fingerprint of each training text to its name and the letters of the groups that read it."""
        found: dict[str, tuple[str, list[str]]] = {}
        for group in self.groups:
            run = group.runs[0]
            if fingerprint := run.context.get("data.sha256") or run.context.get("data.train_sha256"):
                python = run.context.get("data.python")
                name = f"{run.text} of Python {python}" if python else run.text
                found.setdefault(str(fingerprint), (name, []))[1].append(group.letter)
        return found

    @property
    def baseline(self) -> float | None:
        """What counting reaches in the unit of :attr:`loss_key`, where all runs that say it say the same."""
        key = "baseline/count_" + self.loss_key.removeprefix("val/")
        found = {spreads[key].mean for group in self.groups if key in (spreads := group.figures())}
        return found.pop() if len(found) == 1 else None


def compare(runs: Sequence[Run]) -> Comparison:
    """Groups runs that are equal up to the seed, and finds what the groups differ in.

    Runs of one configuration that were made with another commit, device, version of PyTorch, number of ranks or path,
    or have come to different steps, are groups of their own: a mean over them would be one of nothing.
    """
    members: dict[tuple[str, str, int], list[Run]] = {}
    for run in runs:
        shared = {key: value for key, value in run.configuration.items() if key not in (SEED, *IGNORED)}
        data = {key: value for key, value in run.context.items() if key.startswith("data.")}
        setup = json.dumps([shared, data], sort_keys=True, default=str)
        made_with = json.dumps([run.context.get(key) for key in MADE_WITH], default=str)
        members.setdefault((setup, made_with, run.last_step), []).append(run)
    groups = [Group(_letter(i), "", *_counted_once(found)) for i, found in enumerate(members.values())]
    differences = _differences(groups)
    setups = [setup for setup, _, _ in members]
    for group, setup, label in zip(groups, setups, _labels(groups, setups, differences), strict=True):
        alike = [other for other, of in zip(groups, setups, strict=True) if of == setup]
        group.label = ", ".join([label, *_told_from(group, alike)])
    tokenizers = {run.context.get("data.tokenizer") for run in runs}
    return Comparison(groups, differences, "val/loss" if len(tokenizers) == 1 else "val/bpb")


def _counted_once(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """The first run of each seed, and the others; runs whose seed nobody knows are different ones."""
    first: dict[Any, Run] = {}
    for run in runs:
        first.setdefault(run.path if run.seed is None else run.seed, run)
    counted = list(first.values())
    return counted, [run for run in runs if not any(run is one for one in counted)]


def _told_from(group: Group, alike: Sequence[Group]) -> list[str]:
    """What tells a group from others of the same configuration."""
    run, others = group.runs[0], [other.runs[0] for other in alike]
    words = []
    for key, name in MADE_WITH.items():
        if any(other.context.get(key) != run.context.get(key) for other in others):
            value = run.context.get(key)
            text = "unknown" if value is None and not name else _made_with(value)
            words.append(f"{name} {text}".strip())
    if any(other.last_step != run.last_step for other in others):
        words.append(f"to step {run.last_step:,}")
    return words


def _made_with(value: Any) -> str:
    if value in (None, []):
        return "none"
    values = value if isinstance(value, list) else [value]
    return " then ".join(v[:8] if isinstance(v, str) and HASH.fullmatch(v) else str(v) for v in values)


def told_apart(differences: Mapping[str, list[Any]]) -> tuple[dict[str, list[Any]], int]:
    """The differences that a person reads.

    What only one architecture, data set or callback has goes with it: where the classes differ, or some runs lack the
    callback, settings with one value that not all runs have are left out.

    Returns:
        The differences that are left, and how many are not.
    """

    def is_implied(key: str, values: list[Any]) -> bool:
        if None not in values or len({str(value) for value in values if value is not None}) > 1:
            return False
        owner = key.partition(".init_args.")[0]
        callback = ".".join(key.split(".")[:3])
        is_of_class = owner != key and f"{owner}.class_path" in differences
        return is_of_class or (callback != key and None in differences.get(callback, ()))

    left = {key: values for key, values in differences.items() if not is_implied(key, values)}
    return left, len(differences) - len(left)


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys; an entry of a list of classes goes by its class, so that an order of callbacks is none."""
    if isinstance(values, Mapping) and values:
        return {
            key: value
            for name, inner in values.items()
            for key, value in flat(inner, f"{prefix}.{name}" if prefix else str(name)).items()
        }
    is_classes = isinstance(values, list) and all(
        isinstance(v, Mapping) and "class_path" in v for v in values
    )
    if is_classes and values:
        found: dict[str, Any] = {}
        for entry in values:
            name = f"{prefix}.{str(entry['class_path']).rpartition('.')[2]}"
            found |= {name: "yes"} | (flat(entry["init_args"], name) if entry.get("init_args") else {})
        return found
    return {prefix: values} if prefix else {}


def read_rows(metrics: Path) -> tuple[list[dict[str, float]], int]:
    """The rows of a ``metrics.csv``.

    Returns:
        Key to number for each row, and how many rows were left out because they are damaged.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no table of steps.
    """
    with metrics.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if header[:1] != ["step"]:
            raise ValueError("does not begin with the column `step`")
        rows: list[dict[str, float]] = []
        n_damaged = 0
        while True:
            try:
                cells = next(reader, None)
                if cells is None:
                    return rows, n_damaged
                row = {key: float(cell) for key, cell in zip(header, cells, strict=True) if cell}
                rows.append({"step": float(int(cells[0])), **row})
            except (ValueError, IndexError, OverflowError, csv.Error):
                n_damaged += 1


def _or_zero(share: float | None) -> float:
    return share or 0.0


def _letter(index: int) -> str:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return letters[index] if index < 26 else _letter(index // 26 - 1) + letters[index % 26]


def _differences(groups: Sequence[Group]) -> dict[str, list[Any]]:
    described = [
        {key: value for key, value in group.runs[0].configuration.items() if key not in (SEED, *IGNORED)}
        | {key: _agreed([run.context.get(key) for run in group.runs]) for key in group.runs[0].context}
        for group in groups
    ]
    keys = dict.fromkeys(key for values in described for key in values)
    columns = {key: [values.get(key) for values in described] for key in keys}
    return {key: column for key, column in columns.items() if any(value != column[0] for value in column)}


def _agreed(values: list[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else "several"


def _labels(
    groups: Sequence[Group], setups: Sequence[str], differences: Mapping[str, list[Any]]
) -> list[str]:
    """What tells the setups apart, in few words, after the name of the configuration that each was begun with."""
    experiments = [group.runs[0].experiment for group in groups]
    if _tell_apart(experiments, setups) and all(experiments):
        return experiments
    labels = _short_labels(groups, setups, differences)
    return [
        label if not name or name in label else f"{name}: {label}"
        for name, label in zip(experiments, labels, strict=True)
    ]


def _short_labels(
    groups: Sequence[Group], setups: Sequence[str], differences: Mapping[str, list[Any]]
) -> list[str]:
    """What tells the setups apart by itself.

    The experiments' names where each setup has its own, otherwise the settings that differ; where those are many, the
    runs' own names, if a person has given them.
    """
    places = [Path(group.runs[0].path).absolute() for group in groups]
    stems = [place.parent.name for place in places]
    names = [place.name for place in places]
    if _tell_apart(stems, setups):
        return stems
    asked = [key for key in differences if key.partition(".")[0] in ("model", "data", "trainer")]
    told = [key for key in asked if "callbacks" not in key]
    # Hashes and counts of the data follow from the settings, and say something only where no setting does.
    configured = [key for key in told if any(key in group.runs[0].configuration for group in groups)]
    told = sorted(configured or told, key=_rank)
    if len(told) > MOST_IN_LABEL and _tell_apart(names, setups) and not any(map(GENERATED.fullmatch, names)):
        return names
    told = told[:MOST_IN_LABEL]
    labels = [
        ", ".join(_setting(key, differences[key][i]) for key in told if differences[key][i] is not None)
        for i in range(len(groups))
    ]
    if len(set(labels)) == len(set(setups)) and all(labels):
        return labels
    return names


def _tell_apart(names: Sequence[str], setups: Sequence[str]) -> bool:
    """Whether each setup has a name of its own."""
    return len(set(names)) == len(set(setups)) == len(set(zip(names, setups, strict=True)))


def _rank(key: str) -> tuple[bool, int]:
    """What was trained comes first, then on what, then how."""
    return key != "model.class_path", ("model", "data", "trainer").index(key.partition(".")[0])


def _setting(key: str, value: Any) -> str:
    name = key.rpartition(".")[2]
    return _short(value) if name == "class_path" else f"{name} {_short(value)}"


def _short(value: Any) -> str:
    text = (
        str(value).rpartition(".")[2] if isinstance(value, str) and value.startswith("app.") else str(value)
    )
    return text if len(text) <= 24 else text[:23] + "…"
